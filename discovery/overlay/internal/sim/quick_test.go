package sim

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

func TestQuick(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("N"))
	w := New(Smokesignal, 1)
	for i := range n {
		d := time.Duration(0)
		if i > 0 {
			d = w.upTo(time.Second)
		}
		w.Add(d, 0)
	}
	var c Counts
	began := time.Now()
	for i := range 30 {
		w.Run(2 * time.Second)
		if i < 8 || i == 29 {
			fmt.Printf("%v share %.4f parts %v msgs %.2f dials %.3f events %d real %v\n", w.Now(), w.Share(0), w.Parts(0)[:min(5, len(w.Parts(0)))], float64(w.Total()-c.Total())/2/float64(n), float64(w.Dials-c.Dials)/2/float64(n), w.Events-c.Events, time.Since(began))
			for k, s := range w.Sent {
				if s -= c.Sent[k]; s > 0 {
					fmt.Printf("%s %.3f, ", kindNames[k], float64(s)/2/float64(n))
				}
			}
			fmt.Println()
		}
		c = w.Counts
	}
	fmt.Println(w.Degrees(), w.Diameter())
}
