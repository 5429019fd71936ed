// Program wire is both ends of the gateway bench: engines that are never the bottleneck, and the load on a gateway.
//
//	wire engine -addresses 127.4.0.1,127.4.0.2 -port 8000 -pace 25ms
//	wire load -target 127.0.0.1:8080 -connections 32 -seconds 10
//
// Each is one thread around epoll, so that a single core can carry both ends while another carries the gateway.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
)

func main() {
	runtime.LockOSThread()
	// Nothing is allocated per request; a collection would only show up as somebody's latency.
	debug.SetGCPercent(400)
	if len(os.Args) < 2 {
		fail("usage: wire engine|load …")
	}
	switch os.Args[1] {
	case "engine":
		runEngines(os.Args[2:])
	case "load":
		runLoad(os.Args[2:])
	default:
		fail("no mode %q", os.Args[1])
	}
}

func check(err error) {
	if err != nil {
		fail("%v", err)
	}
}

func fail(format string, values ...any) {
	fmt.Fprintf(os.Stderr, "wire: "+format+"\n", values...)
	os.Exit(1)
}
