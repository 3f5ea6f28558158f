// Drives Chromium for the test in Go (integration_test/web_test.go): each line of standard
// input is a command, and is answered by a line, until the input ends.
//
//	node test/browser.js /usr/bin/chromium
//	{"do": "open", "page": "phone", "url": "http://127.0.0.1:8080", "width": 360, "height": 740}

import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import { chromium } from 'playwright-core'

const timeout = 60_000

const browser = await chromium.launch({
  executablePath: process.argv[2],
  args: [
    '--no-sandbox', // a sandbox is impossible for root
    '--allow-loopback-in-peer-connection', '--disable-features=WebRtcHideLocalIpsWithMdns', // for WebRTC on loopback only
    '--host-resolver-rules=MAP phone.test 127.0.0.1' // a page at this name is not a secure context, like a page on a local network
  ]
})

/** @type {Map<string, import('playwright-core').Page>} */
const pages = new Map()
/** @type {string[]} */
const faults = []

/** @typedef {{ do: string, page: string, url: string, width: number, height: number, dark: boolean, text: string, names: string[], path: string }} Command */

/** @type {Record<string, (page: import('playwright-core').Page, cmd: Command) => Promise<unknown>>} */
const commands = {
  async open (_, { page: name, url, width, height, dark }) {
    const page = await (await browser.newContext({ viewport: { width, height }, colorScheme: dark ? 'dark' : 'light' })).newPage()
    pages.set(name, page)
    page.setDefaultTimeout(timeout)
    page.on('pageerror', (err) => faults.push(`${name}: ${err.stack}`))
    page.on('console', (msg) => { if (msg.type() === 'error' && !msg.text().includes('ERR_CONNECTION')) faults.push(`${name}: ${msg.text()}`) })
    // The page must not load anything from elsewhere.
    page.on('request', (r) => { if (new URL(r.url()).host !== new URL(url).host) faults.push(`${name} asks for ${r.url()}`) })
    await page.goto(url)
    return await page.evaluate(() => isSecureContext)
  },
  // Types by keyboard only, into the element that has the focus.
  async type (page, { text }) {
    await page.keyboard.type(text)
    await page.keyboard.press('Enter')
  },
  async line (page, { text }) { await page.getByRole('log').getByText(text, { exact: true }).last().waitFor() },
  async trouble (page, { text }) { await page.getByRole('alert').getByText(text).waitFor() },
  async clear (page) { await page.getByLabel('Message', { exact: true }).fill('') },
  async status (page, { text }) { await page.getByRole('status').getByText(text).waitFor() },
  /** Waits until exactly these names are listed. */
  async here (page, { names }) {
    try {
      await page.waitForFunction((want) => {
        const got = [...document.querySelectorAll('#here li')].map((e) => e.textContent)
        return JSON.stringify(got) === JSON.stringify(want)
      }, names)
    } catch (err) {
      throw new Error(`wanted ${names}, got ${await page.locator('#here li').allTextContents()}`)
    }
  },
  async text (page) { return await page.getByRole('log').innerText() },
  async press (page, { text }) { await page.getByRole('button', { name: text, exact: true }).click() },
  async people (page) { await page.locator('summary').click() },
  async shot (page, { path }) { await page.screenshot({ path }) },
  async close (page) { await page.close() },

  /** Checks that the page fits, works by keyboard, and has roles and labels. Returns the order of the Tab key. */
  async check (page) {
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)
    if (wide > 0) throw new Error(`it is ${wide} pixels too wide`)
    for (const [role, name] of /** @type {const} */ ([['log', 'Messages'], ['textbox', 'Message'], ['button', 'Send'], ['button', 'Invite'], ['heading', 'smokesignal']])) {
      const n = await page.getByRole(role, { name }).count()
      if (n !== 1) throw new Error(`${n} of role ${role} are named ${name}`)
    }
    const live = await page.getByRole('log').evaluate((e) => e.ariaLive)
    if (live !== null && live !== 'polite') throw new Error(`the log is ${live}`) // polite is the default of the role

    // Tab goes through all elements, and comes back.
    const order = []
    await page.getByLabel('Message', { exact: true }).focus()
    for (let i = 0; i < 12; i++) {
      await page.keyboard.press('Tab')
      const id = await page.evaluate(() => {
        const e = document.activeElement
        return e === null || e === document.body ? '' : e.id || e.textContent.trim()
      })
      if (id !== '') order.push(id) // else the focus is on a button of the browser
      if (id === 'line') break
    }

    await page.evaluate(await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8'))
    const { violations } = await page.evaluate(() => /** @type {any} */ (globalThis).axe.run())
    if (violations.length > 0) {
      throw new Error('axe finds ' + violations.map((/** @type {any} */ v) => `${v.id}: ${v.help}: ${v.nodes.map((/** @type {any} */ n) => n.html + ' ' + n.failureSummary)}`).join('; '))
    }
    return order
  },

  /** Returns the errors of all pages since the last call. */
  async faults () { return faults.splice(0) }
}

for await (const line of createInterface({ input: process.stdin })) {
  /** @type {Command} */
  const cmd = JSON.parse(line)
  try {
    const result = await commands[cmd.do](/** @type {any} */ (pages.get(cmd.page)), cmd)
    console.log(JSON.stringify({ result: result ?? null }))
  } catch (err) {
    console.log(JSON.stringify({ error: String(err) }))
  }
}
await browser.close()
