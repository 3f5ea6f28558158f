import { run } from './scenario.js'

await run(process.argv[2])
