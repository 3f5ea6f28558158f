// The liveness of nodes, step by step, without a network: time is a number.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Liveness } from '../src/liveness.js'

test('a silent node is probed twice, and is dead after ten seconds', () => {
  const l = new Liveness()
  assert.deepEqual(l.advance(0), { probe: [], dead: [], next: Infinity })
  l.addNode(0, 'a')
  assert.deepEqual(l.advance(3999), { probe: [], dead: [], next: 4000 })
  assert.deepEqual(l.advance(4000), { probe: ['a'], dead: [], next: 7000 })
  assert.deepEqual(l.advance(7000), { probe: ['a'], dead: [], next: 10_000 })
  assert.deepEqual(l.advance(10_000), { probe: [], dead: ['a'], next: Infinity })
  l.heard(10_001, 'a') // too late: it is not watched any more
  assert.deepEqual(l.advance(60_000), { probe: [], dead: [], next: Infinity })
})

test('a node that answers any probe lives', () => {
  const l = new Liveness()
  l.addNode(0, 'a')
  l.addNode(0, 'b')
  for (let now = 0; now < 60_000; now += 8000) {
    assert.deepEqual(l.advance(now + 4000).probe, ['a', 'b'])
    assert.deepEqual(l.advance(now + 7000).probe, ['a', 'b'])
    l.heard(now + 8000, 'a')
    l.heard(now + 8000, 'b')
  }
  l.heard(70_000, 'a')
  assert.deepEqual(l.advance(80_000).dead, [])
})

test('a leaf that was asleep asks once more before it gives up a node', () => {
  const l = new Liveness()
  l.addNode(0, 'a')
  assert.deepEqual(l.advance(4000).probe, ['a'])
  assert.deepEqual(l.advance(3_600_000), { probe: ['a'], dead: [], next: 3_603_000 })
  l.heard(3_600_010, 'a')
  assert.deepEqual(l.advance(3_603_000).dead, [])
})

test('a node that was removed is not watched', () => {
  const l = new Liveness()
  l.addNode(0, 'a')
  l.removeNode('a')
  assert.deepEqual(l.advance(60_000), { probe: [], dead: [], next: Infinity })
})
