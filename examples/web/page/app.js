// The page: it joins the network as a peer of its own, and shows the chat.
//
// It reaches the server's node through a WebSocket to the address that it was loaded from,
// so everybody who sees the page can join. With a ticket after the # of its address, it joins
// the ticket's node instead, wherever it was loaded from.

import { newNode, encodeQR, join } from './bundle.js'
import { Chat } from './chat.js'
import { help, parseLine } from './commands.js'
import { Pending } from './pending.js'
import { clean, maxText } from './text.js'

/** @typedef {import('smokesignal-leaf').Leaf} Leaf */

/** @type {(id: string) => any} */
const $ = (id) => document.getElementById(id)

const ticket = location.hash.slice(1)
const maxLines = 500

/**
 * What the server says about its node.
 * @typedef {{ id: string, network: string, command: string }} Server
 */

/**
 * Asks the server about its node, until it answers or this user has left.
 * @param {number} mine the value of turn when this user entered @returns {Promise<Server | undefined>}
 */
async function server (mine) {
  while (mine === turn) {
    try {
      const answer = await fetch('join.json', { cache: 'no-store', signal: AbortSignal.timeout(5000) })
      if (answer.ok) return await answer.json()
    } catch {} // it is not running
    if (mine === turn && !leaf?.connected) status('off', 'The server does not answer, trying again…')
    await pause()
  }
}

const pause = () => new Promise((resolve) => setTimeout(resolve, 2000))

/** Returns the multiaddr of the server's node. @param {string} id */
function serverAddress (id) {
  const secure = location.protocol === 'https:'
  const host = location.hostname.replace(/^\[|\]$/g, '')
  const kind = host.includes(':') ? 'ip6' : /^[0-9.]+$/.test(host) ? 'ip4' : 'dns'
  const port = location.port === '' ? (secure ? 443 : 80) : location.port
  return `/${kind}/${host}/tcp/${port}/${secure ? 'tls/ws' : 'ws'}/p2p/${id}`
}

// --- display

/** @param {'on' | 'off' | ''} state @param {string} text */
function status (state, text) {
  const e = $('status')
  if (e.className === state && e.textContent === text) return // else screen readers would say it again
  e.className = state
  e.textContent = text
}

/** @param {string} text */
function bdi (text) {
  const e = document.createElement('bdi') // so that right-to-left text cannot reorder the text beside it
  e.textContent = text
  return e
}

/** @typedef {() => Node} Line makes the element when it is shown */

/** @type {Pending<Line>} */
const pending = new Pending((lines, names) => {
  if (lines.length > 0) appendLines(lines)
  if (names !== undefined) showHere(names)
}, maxLines, (f) => { requestAnimationFrame(f) })

/** Appends lines to the log, and scrolls to the end if the user had not scrolled away from it. @param {Line[]} lines */
function appendLines (lines) {
  const log = $('log')
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40
  log.append(...lines.map((line) => line()))
  while (log.childElementCount > maxLines) log.firstElementChild.remove()
  if (atEnd) log.scrollTop = log.scrollHeight
}

/** @param {string} kind @param {...Node | string} parts */
function paragraph (kind, ...parts) {
  const line = document.createElement('p')
  line.className = kind
  line.append(...parts)
  return line
}

/** @param {string} name @param {string} text */
function spoken (name, text) {
  const speaker = bdi(name)
  speaker.className = 'name'
  let hue = 0
  for (const c of name) hue = (hue * 31 + /** @type {number} */ (c.codePointAt(0))) % 360
  speaker.style.setProperty('--hue', String(hue))
  return paragraph('line', speaker, ': ', bdi(text))
}

/** @param {string} name @param {string} text */
const said = (name, text) => pending.addLine(() => spoken(name, text))

/** @param {string} text */
const note = (text) => pending.addLine(() => paragraph('note', bdi(text)))

/** @param {string[]} names */
function showHere (names) {
  $('count').textContent = String(1 + names.length)
  $('here').replaceChildren(...[`${chat?.name ?? $('name').value} (you)`, ...names].map((name) => {
    const e = document.createElement('li')
    e.append(bdi(name))
    return e
  }))
}

// --- the chat

/** @type {Promise<any> | undefined} */
let libp2p
/** @type {Leaf | undefined} */
let leaf
/** @type {Chat | undefined} */
let chat
/** @type {Server | undefined} the server whose node was joined */
let joined
let turn = 0 // rises when this user enters or leaves; anything that began before has no effect
let following = 0 // the turn in which followServer runs

/** @param {string} name */
async function enter (name) {
  const mine = ++turn
  status('', 'Connecting…')
  libp2p ??= newNode()
  let node
  try {
    node = await libp2p
  } catch (err) {
    libp2p = undefined // so that another attempt can succeed
    if (mine !== turn) return
    throw err
  }
  const found = ticket === '' ? await server(mine) : undefined
  if (mine !== turn) return
  status('', 'Connecting…')
  const own = await join(found === undefined
    ? { libp2p: node, ticket }
    : { libp2p: node, addrs: [serverAddress(found.id)], network: found.network })
  if (mine !== turn) return await own.close()
  joined = found
  leaf = own
  $('network').textContent = own.network === 'chat' ? '' : own.network // that is the default of all chats
  chat = new Chat(own, name, {
    said,
    note,
    here: (names) => pending.setNames(names),
    connected (yes) {
      status(yes ? 'on' : 'off', yes ? 'Connected' : lost)
      note(yes ? 'connected' : 'disconnected')
      if (!yes) followServer(name).catch(failed)
    }
  })
  showHere([])
  followServer(name).catch(failed)
}

/** @param {Error} err such as a malformed ticket */
const failed = (err) => status('off', `Cannot join: ${err.message}`)

const lost = 'No connection, trying again…'

/**
 * While there is no connection, asks the server whether its node has changed: a server that
 * was started again may have a new identity. If it has, joins the new node.
 * @param {string} name
 */
async function followServer (name) {
  const mine = turn
  if (ticket !== '' || following === mine) return
  following = mine
  const wanted = () => mine === turn && !leaf?.connected
  for (await pause(); wanted(); await pause()) {
    const now = await server(mine)
    if (!wanted() || now === undefined) break
    if (now.id !== joined?.id || now.network !== joined.network) {
      const left = leave(false)
      const after = turn
      await left
      if (after === turn) await enter(name) // unless this user has left meanwhile
      return
    }
    status('off', lost)
  }
  if (following === mine) following = 0
}

/** @param {boolean} goodbye */
async function leave (goodbye) {
  turn++
  const [oldChat, oldLeaf] = [chat, leaf]
  chat = leaf = undefined
  try {
    await oldChat?.close(goodbye)
  } catch {} // there is no connection for the goodbye
  await oldLeaf?.close()
}

// --- input

/** @param {string} key */
function remembered (key) {
  try {
    return localStorage.getItem(key) ?? ''
  } catch {
    return '' // the browser does not allow storage
  }
}

$('name').value = remembered('name')
$('people').open = matchMedia('(min-width: 40.01rem)').matches

$('join').addEventListener('submit', (/** @type {Event} */ evt) => {
  evt.preventDefault()
  const name = $('name').value
  try {
    localStorage.setItem('name', name)
  } catch {}
  $('enter').hidden = true
  $('room').hidden = false
  $('line').focus()
  showHere([])
  enter(name).catch(failed)
})

$('send').addEventListener('submit', async (/** @type {Event} */ evt) => {
  evt.preventDefault()
  const typed = $('line').value
  $('trouble').textContent = ''
  if (typed.trim() === '') return
  if (chat === undefined || leaf === undefined || !leaf.connected) {
    $('trouble').textContent = 'Not sent: there is no connection yet. The line is still here.'
    return
  }
  let line
  try {
    line = parseLine(typed)
  } catch (err) {
    $('trouble').textContent = /** @type {Error} */ (err).message
    return // the line stays, so that it can be corrected
  }
  $('line').value = ''
  try {
    await carryOut(chat, line)
  } catch (err) {
    $('trouble').textContent = `Not sent: ${/** @type {Error} */ (err).message}`
    if ($('line').value === '') $('line').value = typed
  }
})

/** @param {Chat} chat @param {import('./commands.js').Line} line */
async function carryOut (chat, line) {
  if (line.kind === 'help') return show(() => note(help))
  const text = clean(line.text, Math.max(maxText, line.text.length))
  if (line.kind === 'msg') {
    const name = await chat.sendTo(line.name, line.text)
    return show(() => said(`you → ${name}`, text))
  }
  show(() => said(chat.name, text))
  await chat.say(line.text)
}

/** Shows what the user has done, at once and at the end. @param {() => void} add */
function show (add) {
  add()
  pending.flush()
  $('log').scrollTop = $('log').scrollHeight
}

$('leave').addEventListener('click', async () => {
  $('leave').disabled = true // while it leaves
  await leave(true)
  $('leave').disabled = false
  pending.clear()
  $('log').replaceChildren()
  $('room').hidden = true
  $('enter').hidden = false
  status('', 'Not joined')
  $('name').focus()
})

$('invite').addEventListener('click', async () => {
  const link = location.origin + location.pathname + (ticket === '' ? '' : '#' + ticket)
  $('link').value = link
  $('loopback').hidden = !/^(localhost|127\.|\[::1\])/.test(location.hostname)
  const command = joined?.command ?? ''
  $('by-terminal').hidden = command === ''
  $('command').value = command
  $('qr').replaceChildren(qr(link))
  $('invitation').showModal()
})

$('copy').addEventListener('click', async () => {
  $('link').select()
  try {
    await navigator.clipboard.writeText($('link').value)
  } catch {
    document.execCommand('copy') // a page from http has no clipboard
  }
  $('copy').textContent = 'Copied'
  setTimeout(() => { $('copy').textContent = 'Copy link' }, 2000)
})

/** Draws a QR code. @param {string} text */
function qr (text) {
  const { size, data } = encodeQR(text, { border: 2 })
  const ns = 'http://www.w3.org/2000/svg'
  const svg = document.createElementNS(ns, 'svg')
  svg.setAttribute('viewBox', `0 0 ${size} ${size}`)
  svg.setAttribute('shape-rendering', 'crispEdges')
  const path = document.createElementNS(ns, 'path')
  path.setAttribute('d', data.flatMap((row, y) => row.flatMap((dark, x) => dark ? [`M${x} ${y}h1v1h-1z`] : [])).join(''))
  svg.append(path)
  return svg
}

// A phone that was asleep has missed roll calls.
document.addEventListener('visibilitychange', () => { if (!document.hidden) chat?.wake() })
// A browser may keep a page for the back button. When it is shown again, it starts anew.
addEventListener('pagehide', () => { chat?.close(true) })
addEventListener('pageshow', (evt) => { if (evt.persisted) location.reload() })
addEventListener('hashchange', () => { location.reload() }) // another ticket
