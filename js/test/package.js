// Tries the package as a user gets it: packed, and installed in a fresh project. It has to
// work with plain Node against a node in Go, with vite in Chromium, and with tsc --strict.
//
//	node test/package.js
//
// It needs Go, npm and its registry. Chromium is that of SMOKESIGNAL_CHROMIUM or of this
// machine; without it, the page is built but not run.

import { execFile, spawn } from 'node:child_process'
import { accessSync } from 'node:fs'
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { delimiter, dirname, extname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

const tools = { '@types/node': '22.20.5', 'playwright-core': '1.65.1', typescript: '7.0.2', vite: '8.4.0' }

const library = dirname(dirname(fileURLToPath(import.meta.url)))
const project = await mkdtemp(join(tmpdir(), 'smokesignal-leaf-'))
// npm and the programs that it installs run with this Node, too.
const env = { ...process.env, PATH: dirname(process.execPath) + delimiter + process.env.PATH }

/** @param {string} cwd @param {string} program @param {...string} args */
async function run (cwd, program, ...args) {
  try {
    const { stdout } = await promisify(execFile)(program, args, { cwd, env, timeout: 300_000, maxBuffer: 1 << 26 })
    return stdout
  } catch (err) {
    const { message, stdout, stderr } = /** @type {any} */ (err)
    throw new Error(`${message}\n${stdout}\n${stderr}`)
  }
}

/** Runs a program that the project has installed. @param {string} script @param {...string} args */
const tool = (script, ...args) => run(project, process.execPath, join('node_modules', script), ...args)

/** @param {string} step @param {() => Promise<void>} f */
async function check (step, f) {
  const began = performance.now()
  await f()
  console.log(`ok: ${step} (${((performance.now() - began) / 1000).toFixed(1)} s)`)
}

function findChromium () {
  const { SMOKESIGNAL_CHROMIUM, PATH = '' } = process.env
  const names = PATH.split(delimiter).flatMap((dir) => ['chromium', 'chromium-browser', 'google-chrome'].map((name) => join(dir, name)))
  return [SMOKESIGNAL_CHROMIUM, ...names].find((path) => {
    try {
      accessSync(path ?? '')
      return true
    } catch {
      return false
    }
  })
}

/** Starts the node in Go, and returns its address and a function that stops it. */
async function startPeer () {
  const path = join(project, 'peer.exe')
  await run(library, 'go', 'build', '-o', path, './test/peer')
  const child = spawn(path, { stdio: ['pipe', 'pipe', 'inherit'] })
  const ended = new Promise((resolve) => child.once('exit', resolve))
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const { value: addr, done } = await lines.next()
  if (done) throw new Error('the node in Go ended before it printed its address')
  const stop = async () => {
    child.stdin.end()
    await ended
  }
  return { addr, stop }
}

/** Serves the built page, and returns the server. */
async function serve () {
  /** @type {Record<string, string>} */
  const types = { '.html': 'text/html', '.js': 'text/javascript' }
  const server = createServer(async ({ url }, res) => {
    const path = url === '/' ? '/index.html' : url ?? ''
    try {
      const body = await readFile(join(project, 'dist', path))
      res.writeHead(200, { 'content-type': types[extname(path)] ?? 'application/octet-stream' }).end(body)
    } catch {
      res.writeHead(404).end()
    }
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(undefined)))
  return server
}

/** Runs the page until it says in its title how it went. @param {string} chromium @param {string} addr */
async function runPage (chromium, addr) {
  const { chromium: launcher } = await import(join(project, 'node_modules/playwright-core/index.mjs'))
  const server = await serve()
  const browser = await launcher.launch({ executablePath: chromium, args: ['--no-sandbox'] }) // a sandbox is impossible for root
  try {
    const page = await browser.newPage()
    await page.goto(`http://127.0.0.1:${/** @type {any} */ (server.address()).port}/#${addr}`)
    await page.waitForFunction(() => document.title !== 'running', undefined, { timeout: 60_000 })
    const title = await page.title()
    if (title !== 'done') throw new Error(title)
  } finally {
    await browser.close()
    server.close()
  }
}

try {
  await check('packed and installed', async () => {
    const [{ filename, files }] = JSON.parse(await run(library, 'npm', 'pack', '--json', '--pack-destination', project))
    const strange = files.filter((/** @type {{ path: string }} */ { path }) => !/^(LICENSE|README\.md|package\.json|(src|types)\/\w+(\.d)?\.[jt]s)$/.test(path))
    if (strange.length > 0) throw new Error(`packed by mistake: ${strange.map((/** @type {{ path: string }} */ f) => f.path)}`)
    await writeFile(join(project, 'package.json'), JSON.stringify({ name: 'consumer', version: '1.0.0', private: true, type: 'module' }))
    await run(project, 'npm', 'install', '--ignore-scripts', '--no-audit', '--no-fund', `./${filename}`)
    await run(project, 'npm', 'install', '--ignore-scripts', '--no-audit', '--no-fund', '--save-dev', ...Object.entries(tools).map(([name, version]) => `${name}@${version}`))
    await cp(join(library, 'test/consumer'), project, { recursive: true })
  })
  const peer = await startPeer()
  try {
    await check('plain Node', async () => { await run(project, process.execPath, 'node.js', peer.addr) })
    await check('vite build', async () => { await tool('vite/bin/vite.js', 'build', '--logLevel', 'warn') })
    const chromium = findChromium()
    if (chromium === undefined) console.log('SKIPPED: the page in a browser: chromium is not here, and SMOKESIGNAL_CHROMIUM does not name one')
    else await check('the page in Chromium', () => runPage(chromium, peer.addr))
  } finally {
    await peer.stop()
  }
  // The types of libp2p itself need those of Node.
  for (const options of [['--module', 'nodenext'], ['--module', 'esnext', '--moduleResolution', 'bundler']]) {
    await check(`tsc --strict ${options.join(' ')}`, async () => {
      await tool('typescript/bin/tsc', '--strict', '--noEmit', '--target', 'es2022', '--lib', 'es2022,dom,dom.iterable', '--types', 'node', ...options, 'consumer.ts')
    })
  }
} finally {
  await rm(project, { recursive: true })
}
