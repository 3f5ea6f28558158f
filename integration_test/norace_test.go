//go:build !race

package integration_test

// slow is how much longer things may take than is promised.
const slow = 1
