// Makes page/bundle.js, and page/LICENSES.txt of the packages in it:
//
//	npm run build
//
// Both are committed, so that the page needs nothing but Go. They depend on nothing but
// the sources and package-lock.json; with --check nothing is written, and it fails if
// they would change.

import { build } from 'esbuild'
import { readFile, readdir, writeFile } from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(fileURLToPath(import.meta.url))
const library = join(here, '../../js/')

const { outputFiles, metafile } = await build({
  absWorkingDir: here,
  plugins: [{
    // smokesignal-leaf is a link to js, which has packages of its own for its tests. Its
    // imports are resolved here, as they would be if it were installed, so that no
    // package is bundled twice.
    name: 'packages of the page only',
    setup (build) {
      build.onResolve({ filter: /^[^./]/ }, ({ path, kind, resolveDir }) =>
        resolveDir.startsWith(library) ? build.resolve(path, { kind, resolveDir: here }) : undefined)
    }
  }],
  entryPoints: ['bundle.js'],
  outfile: 'page/bundle.js',
  bundle: true,
  minify: true,
  format: 'esm',
  platform: 'browser',
  target: 'es2022',
  legalComments: 'none', // LICENSES.txt has them
  banner: { js: '/* libp2p and others, see LICENSES.txt; made by npm run build */' },
  metafile: true,
  write: false
})

/** Finds the package of a file. @param {string} file */
const packageOf = (file) => /^(?:.*\/)?node_modules\/(?:@[^/]+\/)?[^/]+/.exec(file)?.[0]

const packages = new Set(Object.keys(Object.values(metafile.outputs)[0].inputs).map(packageOf))
/** @type {Map<string, string[]>} packages by the text of their license */
const licenses = new Map()
for (const dir of [...packages].filter((p) => p !== undefined).sort()) {
  const { name, version, license } = JSON.parse(await readFile(join(here, dir, 'package.json'), 'utf8'))
  const files = (await readdir(join(here, dir))).filter((f) => /^(licen[cs]e|copying)/i.test(f)).sort()
  const file = files.find((f) => /mit/i.test(f)) ?? files[0] // of two that one may choose from
  const text = file === undefined ? `(${license})` : (await readFile(join(here, dir, file), 'utf8')).trim().replaceAll('\r', '')
  licenses.set(text, [...licenses.get(text) ?? [], `${name} ${version}: ${license}`])
}
const text = [...licenses].map(([text, names]) => `${names.join('\n')}\n\n${text}\n`).join(`\n${'-'.repeat(80)}\n\n`)

let differs = false
for (const [path, made] of [[outputFiles[0].path, outputFiles[0].text], [join(here, 'page/LICENSES.txt'), text]]) {
  const there = await readFile(path, 'utf8').catch(() => '')
  if (there === made) continue
  if (process.argv.includes('--check')) {
    console.error(`${relative(here, path)} is not what the sources give; run npm run build and commit it`)
    differs = true
  } else {
    await writeFile(path, made)
    console.log(`${relative(here, path)}: ${made.length} bytes`)
  }
}
process.exit(differs ? 1 : 0)
