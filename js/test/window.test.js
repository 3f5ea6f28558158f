// The window of a leaf's own broadcasts, step by step, without a network: time is a number.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Window } from '../src/window.js'

test('a window lets 16 batches go, and more as they are acknowledged', () => {
  const w = new Window()
  assert.ok(w.hasRoom && w.isSettled)
  w.addNode(0, 'a')
  for (let i = 1; i <= 16; i++) {
    assert.ok(w.hasRoom)
    w.published(0, BigInt(i + 1), 100)
  }
  assert.ok(!w.hasRoom)
  w.acknowledged(1, 'a', 2n)
  assert.ok(w.hasRoom)
  w.published(1, 18n, 100)
  assert.ok(!w.hasRoom)
  w.acknowledged(2, 'a', 18n)
  assert.ok(w.isSettled)
  w.published(2, 19n, 1 << 20)
  assert.ok(!w.hasRoom)
})

test('a node that acknowledges nothing is nudged, and given up until it does', () => {
  const w = new Window()
  w.addNode(0, 'a')
  w.addNode(0, 'b')
  for (let i = 1; i <= 16; i++) w.published(0, BigInt(i + 1), 100)
  w.acknowledged(0, 'a', 17n)
  assert.deepEqual(w.advance(299), { nudge: [], next: 300 })
  assert.deepEqual(w.advance(300), { nudge: ['b'], next: 900 })
  assert.deepEqual(w.advance(4900).nudge, ['b'])
  assert.ok(!w.hasRoom)
  w.advance(5000)
  assert.ok(w.hasRoom)
  w.acknowledged(5001, 'b', 2n)
  assert.ok(w.hasRoom) // it lacks 15
  w.published(5001, 18n, 100)
  assert.ok(!w.hasRoom)
  w.removeNode('b')
  assert.ok(w.hasRoom)
})

test('a node is owed what is published while it is there', () => {
  const w = new Window()
  for (let i = 1; i <= 40; i++) w.published(0, BigInt(i + 1), 100)
  assert.ok(w.hasRoom) // nobody is there
  w.addNode(0, 'a')
  assert.ok(w.hasRoom && w.isSettled)
})
