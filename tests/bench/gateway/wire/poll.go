package main

import (
	"fmt"
	"net"
	"syscall"
	"time"
	"unsafe"
)

// Poller is one epoll instance. Everything here runs on one thread: no scheduler, no locks, no allocation per event.
type Poller struct {
	fd     int
	events []syscall.EpollEvent
}

func newPoller() *Poller {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	check(err)
	return &Poller{fd, make([]syscall.EpollEvent, 1024)}
}

func (p *Poller) add(fd int, writable bool) {
	check(syscall.EpollCtl(p.fd, syscall.EPOLL_CTL_ADD, fd, event(fd, writable)))
}

func (p *Poller) watch(fd int, writable bool) {
	check(syscall.EpollCtl(p.fd, syscall.EPOLL_CTL_MOD, fd, event(fd, writable)))
}

func event(fd int, writable bool) *syscall.EpollEvent {
	mask := uint32(syscall.EPOLLIN)
	if writable {
		mask |= syscall.EPOLLOUT
	}
	return &syscall.EpollEvent{Events: mask, Fd: int32(fd)}
}

const sysEpollPwait2 = 441

// wait returns what is ready; `limit` below zero waits for ever. epoll_pwait2, because epoll_wait counts milliseconds
// and would turn evenly paced chunks into bursts.
func (p *Poller) wait(limit time.Duration) []syscall.EpollEvent {
	var timeout *syscall.Timespec
	if limit >= 0 {
		spec := syscall.NsecToTimespec(int64(limit))
		timeout = &spec
	}
	n, _, errno := syscall.Syscall6(sysEpollPwait2, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events[0])),
		uintptr(len(p.events)), uintptr(unsafe.Pointer(timeout)), 0, 0)
	if errno == syscall.EINTR {
		return nil
	}
	if errno != 0 {
		fail("epoll_pwait2: %v", errno)
	}
	return p.events[:n]
}

// write sends what the socket takes now and returns the rest.
func write(fd int, data []byte) ([]byte, error) {
	for len(data) > 0 {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&data[0])),
			uintptr(len(data)), syscall.MSG_NOSIGNAL, 0, 0)
		if errno == syscall.EAGAIN {
			return data, nil
		}
		if errno != 0 {
			return data, errno
		}
		data = data[n:]
	}
	return nil, nil
}

// read returns what is there; nothing and no error means "not now", nothing and errEnd the end of the stream.
func read(fd int, into []byte) ([]byte, error) {
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&into[0])), uintptr(len(into)))
	if errno == syscall.EAGAIN {
		return nil, nil
	}
	if errno != 0 {
		return nil, errno
	}
	if n == 0 {
		return nil, errEnd
	}
	return into[:n], nil
}

var errEnd = fmt.Errorf("the connection ended")

func address(ip string, port int) *syscall.SockaddrInet4 {
	parsed := net.ParseIP(ip).To4()
	if parsed == nil {
		fail("%q is not an IPv4 address", ip)
	}
	return &syscall.SockaddrInet4{Port: port, Addr: [4]byte(parsed)}
}

func tcpSocket() int {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	check(err)
	return fd
}

func noDelay(fd int) {
	check(syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1))
}

// now is the monotonic clock, the same for all processes of a machine.
func now() int64 {
	var spec syscall.Timespec
	// Through the system call, because Go hides the absolute value of the clock that it reads.
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&spec)), 0)
	return spec.Nano()
}
