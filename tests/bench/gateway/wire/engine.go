package main

import (
	"bytes"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Engines answers like OpenAI-compatible engines on many addresses: at once, or as a stream at a fixed pace.
type Engines struct {
	poller  *Poller
	pace    time.Duration
	conns   []*engineConn // by file descriptor
	accepts map[int]bool  // listeners, each one engine
	due     []*engineConn // streams in the order in which they are due: one pace for all keeps them sorted
	event   []byte
	asked   int // inference requests
	altered int // of those, requests whose body is not what the load sent
	plain   []byte
	want    map[int][]byte // bodies by seed, made once
}

type engineConn struct {
	fd      int
	engine  int // the listener that it came to
	in      Message
	body    []byte
	out     []byte
	stream  bool
	count   int
	tokens  int
	dueAt   int64
	serial  int // tells a connection from the next one with its descriptor
	isGone  bool
	writing bool
}

func runEngines(args []string) {
	flags := flag.NewFlagSet("engine", flag.ExitOnError)
	addresses := flags.String("addresses", "127.0.0.1", "where to listen, separated by commas")
	port := flags.Int("port", 8000, "port on each of them")
	pace := flags.Duration("pace", 20*time.Millisecond, "time between two chunks of a stream")
	flags.Parse(args)
	e := &Engines{poller: newPoller(), pace: *pace, accepts: map[int]bool{}, event: newEvent(), want: map[int][]byte{}}
	e.plain = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", len(answer), answer)
	for _, ip := range strings.Split(*addresses, ",") {
		fd := tcpSocket()
		check(syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
		check(syscall.Bind(fd, address(ip, *port)))
		check(syscall.Listen(fd, 4096))
		e.accepts[fd] = true
		e.poller.add(fd, false)
	}
	fmt.Println("ready")
	e.run()
}

func (e *Engines) run() {
	buffer := make([]byte, 1<<18)
	for {
		limit := time.Duration(-1)
		if len(e.due) > 0 {
			limit = max(0, time.Duration(e.due[0].dueAt-now()))
		}
		for _, event := range e.poller.wait(limit) {
			fd := int(event.Fd)
			if e.accepts[fd] {
				e.accept(fd)
				continue
			}
			conn := e.conns[fd]
			if conn == nil {
				continue
			}
			if event.Events&syscall.EPOLLOUT != 0 {
				e.send(conn, nil)
			}
			if event.Events&^uint32(syscall.EPOLLOUT) != 0 && !conn.isGone {
				e.receive(conn, buffer)
			}
		}
		e.emit()
	}
}

func (e *Engines) accept(listener int) {
	for {
		fd, _, err := syscall.Accept4(listener, syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		noDelay(fd)
		for len(e.conns) <= fd {
			e.conns = append(e.conns, nil)
		}
		e.conns[fd] = &engineConn{fd: fd, engine: listener}
		e.poller.add(fd, false)
	}
}

func (e *Engines) drop(conn *engineConn) {
	conn.isGone = true
	e.conns[conn.fd] = nil
	syscall.Close(conn.fd)
}

func (e *Engines) receive(conn *engineConn, buffer []byte) {
	data, err := read(conn.fd, buffer)
	if err != nil {
		e.drop(conn)
		return
	}
	for len(data) > 0 {
		data, err = conn.in.feed(data, false, func(piece []byte) { conn.body = append(conn.body, piece...) })
		if err != nil {
			e.drop(conn)
			return
		}
		if conn.in.done {
			e.answer(conn)
			conn.in.reset()
			conn.body = conn.body[:0]
			if conn.isGone {
				return
			}
		}
	}
}

func (e *Engines) answer(conn *engineConn) {
	head := conn.in.head
	if !bytes.HasPrefix(head, []byte("POST ")) {
		e.send(conn, e.page(conn.engine, head))
		return
	}
	e.asked++
	tokens, _ := member(conn.body, `"max_tokens":`)
	stream := bytes.Contains(conn.body, []byte(`"stream":true`)) || bytes.Contains(conn.body, []byte(`"stream": true`))
	if !e.isIntact(conn.body, stream, tokens) {
		e.altered++
	}
	if !stream {
		e.send(conn, e.plain)
		return
	}
	conn.stream, conn.count, conn.tokens = true, 0, tokens
	e.send(conn, []byte("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"))
	conn.dueAt = now() + int64(e.pace)
	e.due = append(e.due, conn)
}

func (e *Engines) isIntact(got []byte, stream bool, tokens int) bool {
	seed, ok := member(got, `"seed":`)
	if !ok || len(got) < shortest {
		return false
	}
	want := e.want[seed]
	// The size is part of the recipe, so a body of another scenario replaces the one before.
	if len(want) != len(got) || !bytes.Equal(want, got) {
		want = body(seed, len(got), stream, tokens)
		e.want[seed] = want
	}
	return bytes.Equal(want, got)
}

// emit sends the chunks that are due.
func (e *Engines) emit() {
	sent := 0
	for _, conn := range e.due {
		at := now()
		if conn.dueAt > at {
			break
		}
		sent++
		if conn.isGone {
			continue
		}
		// A client that does not take its chunks slows its engine down, as it would a real one.
		if len(conn.out) < 1<<16 {
			if conn.count == conn.tokens {
				e.send(conn, chunk([]byte(lastEvent), []byte("0\r\n\r\n")))
				conn.stream = false
				continue
			}
			fillEvent(e.event, at, conn.count)
			conn.count++
			e.send(conn, chunk(e.event, nil))
		}
		conn.dueAt = max(conn.dueAt+int64(e.pace), at)
		e.due = append(e.due, conn)
	}
	e.due = e.due[sent:]
}

var chunkBuffer []byte

func chunk(data, after []byte) []byte {
	chunkBuffer = strconv.AppendInt(chunkBuffer[:0], int64(len(data)), 16)
	chunkBuffer = append(append(append(append(chunkBuffer, "\r\n"...), data...), "\r\n"...), after...)
	return chunkBuffer
}

func (e *Engines) send(conn *engineConn, data []byte) {
	if len(conn.out) > 0 {
		conn.out = append(conn.out, data...)
		data = conn.out
	}
	rest, err := write(conn.fd, data)
	if err != nil {
		e.drop(conn)
		return
	}
	conn.out = append(conn.out[:0], rest...)
	if waits := len(conn.out) > 0; waits != conn.writing {
		conn.writing = waits
		e.poller.watch(conn.fd, waits)
	}
}

// running counts the streams of one engine; whatever is no stream was answered at once.
func (e *Engines) running(engine int) int {
	count := 0
	for _, conn := range e.due {
		if conn.engine == engine && !conn.isGone {
			count++
		}
	}
	return count
}

// page answers what a router asks an engine about itself.
func (e *Engines) page(engine int, head []byte) []byte {
	path := string(bytes.Fields(head)[1])
	kind, text := "application/json", ""
	switch {
	case path == "/metrics":
		kind, text = "text/plain; version=0.0.4", fmt.Sprintf(metricsPage, e.running(engine))
	case path == "/health" || path == "/health_generate" || path == "/liveness":
		text = "{}"
	case path == "/counts":
		text = fmt.Sprintf(`{"asked":%d,"altered":%d}`, e.asked, e.altered)
		e.asked, e.altered = 0, 0
	case path == "/v1/models":
		text = `{"object":"list","data":[{"id":"m","object":"model","created":1700000000,"owned_by":"vllm","max_model_len":131072}]}`
	case path == "/get_server_info" || path == "/server_info" || path == "/get_model_info" || path == "/model_info":
		text = `{"model_path":"m","model_id":"m","served_model_name":"m","dp_size":1,"tp_size":1,"is_generation":true,"version":"0.5.0","max_total_num_tokens":100000}`
	case path == "/get_load" || path == "/v1/loads":
		text = `[{"dp_rank":0,"num_reqs":0,"num_waiting_reqs":0,"num_tokens":0}]`
	case path == "/version":
		text = `{"version":"0.11.0"}`
	default:
		return []byte("HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}")
	}
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s", kind, len(text), text)
}

const metricsPage = `# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} %d.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means all of it.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
# HELP vllm:lora_requests_info Running stats on lora requests.
# TYPE vllm:lora_requests_info gauge
`
