package main

import (
	"bytes"
	"fmt"
)

// What both ends agree on, so that each can tell whether the bytes in between came through unchanged.

const (
	eventHead   = `data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"m","choices":[{"index":0,"delta":{"content":"t=`
	stampDigits = 19
	eventMiddle = ` n=`
	countDigits = 6
	eventTail   = `"},"finish_reason":null}]}` + "\n\n"
	eventLength = len(eventHead) + stampDigits + len(eventMiddle) + countDigits + len(eventTail)
	stampAt     = len(eventHead)
	countAt     = stampAt + stampDigits + len(eventMiddle)
	lastEvent   = "data: [DONE]\n\n"
)

const answer = `{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,` +
	`"message":{"role":"assistant","content":"The quick brown fox jumps over the lazy dog, and the dog, who has seen ` +
	`foxes before, sleeps on. A second sentence makes the answer as long as a short one usually is, and a third one ends it.` +
	`"},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":400,"completion_tokens":48,"total_tokens":448}}`

const system = "You are a careful assistant of a large company. You answer in the language of the question, briefly and " +
	"truthfully, you never invent facts, you say so when you do not know, and you use Markdown only when it helps. "

// fillEvent writes the variable digits of one event.
func fillEvent(event []byte, stamp int64, count int) {
	digits(event[stampAt:stampAt+stampDigits], uint64(stamp))
	digits(event[countAt:countAt+countDigits], uint64(count))
}

func digits(into []byte, number uint64) {
	for i := len(into) - 1; i >= 0; i-- {
		into[i] = byte('0' + number%10)
		number /= 10
	}
}

func number(digits []byte) (int64, bool) {
	var value int64
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		value = value*10 + int64(c-'0')
	}
	return value, true
}

func newEvent() []byte {
	return fmt.Appendf(nil, "%s%0*d%s%0*d%s", eventHead, stampDigits, 0, eventMiddle, countDigits, 0, eventTail)
}

// shortest is the smallest body that can be made.
const shortest = 2*len(system) + 256

var words = bytes.Fields([]byte(`time year people way day man thing woman life child world school state family student
group country problem hand part place case week company system program question work government number night point home
water room mother area money story fact month lot right study book eye job word business issue side kind head house`))

// body is chat request number `seed`, exactly `size` bytes, the same in every process. All share the system prompt, 16 share each first half.
func body(seed, size int, stream bool, tokens int) []byte {
	out := fmt.Appendf(nil, `{"model":"m","stream":%t,"max_tokens":%d,"temperature":0.7,"seed":%d,"messages":[{"role":"system","content":"%s%s"},{"role":"user","content":"`,
		stream, tokens, seed, system, system)
	const end = `"}]}`
	if size < shortest {
		fail("a request body has at least %d bytes", shortest)
	}
	half := len(out) + (size-len(out))/2
	state := uint64(seed/16)*2 + 1
	for len(out) < size-len(end) {
		if len(out) >= half {
			state, half = uint64(seed)*2+uint64(1)<<32, size
		}
		state = state*6364136223846793005 + 1442695040888963407
		out = append(append(out, words[state>>33%uint64(len(words))]...), ' ')
	}
	return append(out[:size-len(end)], end...)
}

// member finds the number behind a name of a JSON object.
func member(body []byte, name string) (int, bool) {
	at := bytes.Index(body, []byte(name))
	if at < 0 {
		return 0, false
	}
	value, found := 0, false
	for _, c := range body[at+len(name):] {
		if c == ' ' && !found {
			continue
		}
		if c < '0' || c > '9' {
			break
		}
		value, found = value*10+int(c-'0'), true
	}
	return value, found
}
