// Package sim runs the overlay in a simulation.
package sim
