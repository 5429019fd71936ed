package main

import (
	"bytes"
	"errors"
	"strconv"
)

// Message is an incremental reader of one HTTP/1.1 message: just enough for bytes that a proxy of this bench sends.
type Message struct {
	head     []byte // start line and headers so far
	hasHead  bool
	left     int // bytes left of the body or of the chunk; -1 reads until the end of the connection
	chunked  bool
	line     []byte // of a chunk's size, or of a trailer
	inChunk  bool
	skip     int // line end behind a chunk
	trailers bool
	done     bool
}

func (m *Message) reset() {
	*m = Message{head: m.head[:0], line: m.line[:0]}
}

var errFraming = errors.New("the framing makes no sense")

// feed takes bytes and hands pieces of the body to `sink`; returns what lies behind the message.
func (m *Message) feed(data []byte, isResponse bool, sink func([]byte)) ([]byte, error) {
	if !m.hasHead {
		var err error
		if data, err = m.feedHead(data, isResponse); err != nil || !m.hasHead {
			return nil, err
		}
	}
	if m.done {
		return data, nil
	}
	if !m.chunked {
		if m.left < 0 {
			sink(data)
			return nil, nil
		}
		n := min(m.left, len(data))
		sink(data[:n])
		m.left -= n
		m.done = m.left == 0
		return data[n:], nil
	}
	return m.feedChunks(data, sink)
}

func (m *Message) feedHead(data []byte, isResponse bool) ([]byte, error) {
	from := max(len(m.head)-3, 0)
	m.head = append(m.head, data...)
	end := bytes.Index(m.head[from:], []byte("\r\n\r\n"))
	if end < 0 {
		return nil, nil
	}
	end += from + 4
	rest := data[len(data)-(len(m.head)-end):]
	m.head = m.head[:end]
	m.hasHead = true
	if length := header(m.head, "content-length"); length != nil {
		n, err := strconv.Atoi(string(length))
		if err != nil {
			return nil, errFraming
		}
		m.left = n
	} else if header(m.head, "transfer-encoding") != nil {
		m.chunked = true
	} else if isResponse {
		m.left = -1
	}
	m.done = !m.chunked && m.left == 0
	return rest, nil
}

func (m *Message) feedChunks(data []byte, sink func([]byte)) ([]byte, error) {
	for len(data) > 0 {
		if m.inChunk {
			n := min(m.left, len(data))
			sink(data[:n])
			data = data[n:]
			if m.left -= n; m.left == 0 {
				m.inChunk, m.skip = false, 2
			}
			continue
		}
		if m.skip > 0 {
			n := min(m.skip, len(data))
			m.skip -= n
			data = data[n:]
			continue
		}
		end := bytes.IndexByte(data, '\n')
		if end < 0 {
			m.line = append(m.line, data...)
			return nil, nil
		}
		m.line = append(m.line, data[:end]...)
		data = data[end+1:]
		line := bytes.TrimRight(m.line, "\r")
		if m.trailers {
			if len(line) == 0 {
				m.done = true
				return data, nil
			}
		} else {
			size, ok := hexadecimal(line)
			if !ok {
				return nil, errFraming
			}
			m.left, m.inChunk, m.trailers = size, size > 0, size == 0
		}
		m.line = m.line[:0]
	}
	return nil, nil
}

func hexadecimal(text []byte) (int, bool) {
	value := 0
	for _, c := range text {
		switch {
		case c >= '0' && c <= '9':
			value = value<<4 | int(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			value = value<<4 | int(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return value, len(text) > 0
}

// header finds a header of a head; names are compared without case.
func header(head []byte, name string) []byte {
	for at := bytes.IndexByte(head, '\n') + 1; at < len(head)-2; {
		end := at + bytes.IndexByte(head[at:], '\n')
		line := head[at:end]
		if len(line) > len(name) && line[len(name)] == ':' && sameLetters(line[:len(name)], name) {
			return bytes.TrimSpace(line[len(name)+1:])
		}
		at = end + 1
	}
	return nil
}

func sameLetters(text []byte, lower string) bool {
	for i, c := range text {
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

func status(head []byte) int {
	if len(head) < 12 {
		return 0
	}
	code, _ := strconv.Atoi(string(head[9:12]))
	return code
}
