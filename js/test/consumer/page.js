import { run } from './scenario.js'

run(location.hash.slice(1)).then(() => { document.title = 'done' }, (err) => { document.title = `failed: ${err.stack}` })
