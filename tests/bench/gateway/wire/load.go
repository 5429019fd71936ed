package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"strings"
	"syscall"
	"time"
)

// Load asks in a closed loop, or at a given rate, and looks at every byte of every answer.
type Load struct {
	poller   *Poller
	target   *syscall.SockaddrInet4
	requests [][]byte
	next     int
	stream   bool
	tokens   int
	isLoose  bool
	endsAt   int64
	limit    int
	interval int64 // between two requests of one connection, 0 for a closed loop
	conns    []*loadConn
	busy     int
	times    Histogram
	firsts   Histogram
	chunks   Histogram
	result   Result
}

// Result is what the program prints, as JSON. Times in microseconds.
type Result struct {
	Requests  int                `json:"requests"`
	Chunks    int                `json:"chunks"`
	Errors    int                `json:"errors"`
	FirstFail string             `json:"first_error,omitempty"`
	Seconds   float64            `json:"seconds"`
	Latency   map[string]float64 `json:"latency_us"`
	First     map[string]float64 `json:"first_byte_us"`
	Chunk     map[string]float64 `json:"chunk_us"`
	Peak      int                `json:"peak_in_flight"`
}

type loadConn struct {
	fd      int
	in      Message
	out     []byte
	got     int // body bytes of this answer
	sample  []byte
	fault   string
	isBusy  bool
	waits   bool // for room to write
	askedAt int64
	dueAt   int64
	readAt  int64
}

func runLoad(args []string) {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	target := flags.String("target", "127.0.0.1:8080", "address and port of the gateway")
	connections := flags.Int("connections", 32, "connections, each with one request at a time")
	seconds := flags.Float64("seconds", 10, "how long requests are begun")
	limit := flags.Int("requests", math.MaxInt, "at most so many requests")
	rate := flags.Float64("rate", 0, "requests per second of all connections together; 0 asks again at once")
	stream := flags.Bool("stream", false, "ask for streams")
	tokens := flags.Int("tokens", 64, "chunks of a stream")
	size := flags.Int("size", 1800, "bytes of a request body")
	distinct := flags.Int("distinct", 2048, "different request bodies")
	isLoose := flags.Bool("loose", false, "accept answers whose bytes were written anew, as long as they say the same")
	headers := flags.String("headers", "", "more header lines, separated by |")
	flags.Parse(args)

	host, port, ok := strings.Cut(*target, ":")
	var portNumber int
	if _, err := fmt.Sscan(port, &portNumber); !ok || err != nil {
		fail("%q is not address:port", *target)
	}
	l := &Load{
		poller: newPoller(), target: address(host, portNumber), stream: *stream, tokens: *tokens, isLoose: *isLoose, limit: *limit,
		times: newHistogram(), firsts: newHistogram(), chunks: newHistogram(),
	}
	more := ""
	for _, line := range strings.Split(*headers, "|") {
		if line != "" {
			more += line + "\r\n"
		}
	}
	for seed := range *distinct {
		data := body(seed, *size, *stream, *tokens)
		l.requests = append(l.requests, fmt.Appendf(nil,
			"POST /v1/chat/completions HTTP/1.1\r\nhost: %s\r\nuser-agent: OpenAI/Python 3.54.0\r\naccept: application/json\r\ncontent-type: application/json\r\nauthorization: Bearer sk-bench\r\n%scontent-length: %d\r\n\r\n%s",
			*target, more, len(data), data))
	}
	if *rate > 0 {
		l.interval = int64(float64(*connections) / *rate * 1e9)
	}
	for range *connections {
		l.conns = append(l.conns, l.connect())
	}
	began := now()
	l.endsAt = began + int64(*seconds*1e9)
	for i, conn := range l.conns {
		conn.dueAt = began
		if l.interval > 0 {
			conn.dueAt += l.interval * int64(i) / int64(len(l.conns))
		}
	}
	l.run()
	l.result.Seconds = float64(now()-began) / 1e9
	l.result.Latency, l.result.First, l.result.Chunk = l.times.summary(), l.firsts.summary(), l.chunks.summary()
	json.NewEncoder(os.Stdout).Encode(l.result)
	if l.result.Errors > 0 {
		os.Exit(3)
	}
}

func (l *Load) connect() *loadConn {
	fd := tcpSocket()
	noDelay(fd)
	if err := syscall.Connect(fd, l.target); err != nil && err != syscall.EINPROGRESS {
		fail("no connection: %v", err)
	}
	conn := &loadConn{fd: fd}
	l.poller.add(fd, false)
	return conn
}

func (l *Load) run() {
	var table []*loadConn // by file descriptor
	place := func(conn *loadConn) {
		for len(table) <= conn.fd {
			table = append(table, nil)
		}
		table[conn.fd] = conn
	}
	for _, conn := range l.conns {
		place(conn)
	}
	buffer := make([]byte, 1<<18)
	l.begin()
	for l.busy > 0 || l.mayBegin(now()) {
		limit := 100 * time.Millisecond
		if l.interval > 0 {
			limit = 200 * time.Microsecond
		}
		for _, event := range l.poller.wait(limit) {
			conn := table[event.Fd]
			if conn == nil {
				continue
			}
			if event.Events&syscall.EPOLLOUT != 0 {
				l.send(conn)
			}
			if event.Events&^uint32(syscall.EPOLLOUT) != 0 {
				if fresh := l.receive(conn, buffer); fresh != nil {
					table[event.Fd] = nil
					place(fresh)
				}
			}
		}
		if l.interval > 0 {
			l.begin()
		}
	}
}

func (l *Load) mayBegin(at int64) bool {
	return at < l.endsAt && l.next < l.limit
}

// begin asks on every idle connection whose time has come.
func (l *Load) begin() {
	at := now()
	for _, conn := range l.conns {
		if !conn.isBusy && conn.dueAt <= at && l.mayBegin(at) {
			l.ask(conn, at)
		}
	}
}

func (l *Load) ask(conn *loadConn, at int64) {
	conn.isBusy, conn.got, conn.sample, conn.fault = true, 0, conn.sample[:0], ""
	// A late request counts from when it was due: waiting for the answer before is part of what a client sees.
	conn.askedAt = at
	if l.interval > 0 {
		conn.askedAt = conn.dueAt
		conn.dueAt += l.interval
	}
	conn.out = l.requests[l.next%len(l.requests)]
	l.next++
	l.busy++
	l.result.Peak = max(l.result.Peak, l.busy)
	l.send(conn)
}

func (l *Load) send(conn *loadConn) {
	rest, err := write(conn.fd, conn.out)
	if err != nil {
		return // reading tells the same, once
	}
	conn.out = rest
	if waits := len(rest) > 0; waits != conn.waits {
		conn.waits = waits
		l.poller.watch(conn.fd, waits)
	}
}

// receive takes what came; returns a new connection when this one ended.
func (l *Load) receive(conn *loadConn, buffer []byte) *loadConn {
	data, err := read(conn.fd, buffer)
	if data == nil && err == nil {
		return nil
	}
	conn.readAt = now()
	switch {
	case err != nil && !conn.isBusy:
		return l.replace(conn)
	case err != nil && conn.in.left < 0 && conn.in.hasHead:
		// An answer without a length ends with its connection.
		l.judge(conn)
		l.finish(conn)
		return l.replace(conn)
	case err != nil:
		l.fault(conn, "the connection ended within the answer")
		l.finish(conn)
		return l.replace(conn)
	case !conn.isBusy:
		l.result.Errors++
		l.result.FirstFail = "bytes that nobody asked for"
		return l.replace(conn)
	}
	if !conn.in.hasHead {
		l.firsts.add(conn.readAt - conn.askedAt)
	}
	rest, err := conn.in.feed(data, true, func(piece []byte) { l.look(conn, piece) })
	if err != nil || len(rest) > 0 {
		l.fault(conn, "the answer is not framed well")
		l.finish(conn)
		return l.replace(conn)
	}
	if !conn.in.done {
		return nil
	}
	closes := bytes.EqualFold(header(conn.in.head, "connection"), []byte("close"))
	l.judge(conn)
	l.finish(conn)
	if closes {
		return l.replace(conn)
	}
	l.askAgain(conn)
	return nil
}

// replace opens a connection instead of one that ended.
func (l *Load) replace(conn *loadConn) *loadConn {
	syscall.Close(conn.fd)
	fresh := l.connect()
	fresh.dueAt = conn.dueAt
	for i, other := range l.conns {
		if other == conn {
			l.conns[i] = fresh
		}
	}
	l.askAgain(fresh)
	return fresh
}

func (l *Load) askAgain(conn *loadConn) {
	if at := now(); l.interval == 0 && l.mayBegin(at) {
		l.ask(conn, at)
	}
}

func (l *Load) fault(conn *loadConn, reason string) {
	if conn.fault == "" {
		conn.fault = reason
	}
}

// look compares a piece of the body with what the engine sent.
func (l *Load) look(conn *loadConn, piece []byte) {
	if l.isLoose {
		conn.sample = append(conn.sample, piece...)
		conn.got += len(piece)
		return
	}
	if !l.stream {
		if conn.got+len(piece) > len(answer) || string(piece) != answer[conn.got:conn.got+len(piece)] {
			l.fault(conn, "the body is not the engine's")
		}
		conn.got += len(piece)
		return
	}
	conn.sample = append(conn.sample, piece...)
	conn.got += len(piece)
	for len(conn.sample) >= eventLength && conn.sample[6] == '{' {
		l.lookAtEvent(conn, conn.sample[:eventLength])
		conn.sample = conn.sample[:copy(conn.sample, conn.sample[eventLength:])]
	}
}

func (l *Load) lookAtEvent(conn *loadConn, event []byte) {
	stamp, isStamp := number(event[stampAt : stampAt+stampDigits])
	count, isCount := number(event[countAt : countAt+countDigits])
	expected := (conn.got - len(conn.sample)) / eventLength
	if !isStamp || !isCount || int(count) != expected || string(event[:stampAt]) != eventHead ||
		string(event[stampAt+stampDigits:countAt]) != eventMiddle || string(event[countAt+countDigits:]) != eventTail {
		l.fault(conn, fmt.Sprintf("event %d of a stream is not the engine's", expected))
		return
	}
	l.result.Chunks++
	l.chunks.add(conn.readAt - stamp)
}

func (l *Load) judge(conn *loadConn) {
	if code := status(conn.in.head); code != 200 {
		l.fault(conn, fmt.Sprintf("status %d", code))
		return
	}
	if l.isLoose {
		l.judgeLoosely(conn)
		return
	}
	if l.stream && (string(conn.sample) != lastEvent || conn.got != l.tokens*eventLength+len(lastEvent)) {
		l.fault(conn, "the stream is not complete")
	}
	if !l.stream && conn.got != len(answer) {
		l.fault(conn, "the body is not complete")
	}
}

// judgeLoosely is for peers that write JSON anew: the words must be there, the bytes may differ.
func (l *Load) judgeLoosely(conn *loadConn) {
	if !l.stream {
		if !bytes.Contains(conn.sample, []byte("and a third one ends it.")) {
			l.fault(conn, "the answer does not say what the engine said")
		}
		return
	}
	chunks := bytes.Count(conn.sample, []byte(" n="))
	l.result.Chunks += chunks
	if chunks != l.tokens {
		l.fault(conn, fmt.Sprintf("%d events instead of %d", chunks, l.tokens))
	}
}

func (l *Load) finish(conn *loadConn) {
	l.busy--
	conn.isBusy = false
	conn.in.reset()
	l.result.Requests++
	l.times.add(conn.readAt - conn.askedAt)
	if conn.fault != "" {
		l.result.Errors++
		if l.result.FirstFail == "" {
			l.result.FirstFail = conn.fault
		}
	}
}

// Histogram counts times in steps of 1.6 percent, from a microsecond to a minute.
type Histogram struct {
	counts []int
	total  int
	sum    float64
	top    int64
}

const stepsPerOctave = 44

func newHistogram() Histogram {
	return Histogram{counts: make([]int, 27*stepsPerOctave)}
}

func (h *Histogram) add(nanoseconds int64) {
	at := int(math.Log2(float64(max(nanoseconds, 1000))/1000) * stepsPerOctave)
	h.counts[min(at, len(h.counts)-1)]++
	h.total++
	h.sum += float64(nanoseconds)
	h.top = max(h.top, nanoseconds)
}

func (h *Histogram) summary() map[string]float64 {
	if h.total == 0 {
		return map[string]float64{}
	}
	return map[string]float64{
		"mean": math.Round(h.sum/float64(h.total)/100) / 10,
		"p50":  h.quantile(0.5), "p90": h.quantile(0.9), "p99": h.quantile(0.99), "p999": h.quantile(0.999),
		"max": math.Round(float64(h.top)/100) / 10,
	}
}

func (h *Histogram) quantile(share float64) float64 {
	rank := int(math.Ceil(share * float64(h.total)))
	for at, count := range h.counts {
		if rank -= count; rank <= 0 {
			return math.Round(math.Exp2((float64(at)+0.5)/stepsPerOctave)*10) / 10
		}
	}
	return 0
}
