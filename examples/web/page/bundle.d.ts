export * from '../bundle.js'
