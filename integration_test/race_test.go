//go:build race

package integration_test

// slow is how much longer things take in a build with the race detector, in
// which a signature alone takes milliseconds.
const slow = 4
