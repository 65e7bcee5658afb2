//! A bad cable. It runs in the network namespace of one machine whose packets the kernel hands over (the
//! target NFQUEUE of iptables, queue 0): each goes on after a while, and some never do. So TCP itself
//! meets loss and delay, as no proxy can make them, on kernels without `netem` too.
//!
//! `fixture-link LOST_PER_MILLE DELAY_MS SEED`: says `ready`, works until its standard input ends, and then says
//! how many packets it saw and how many of them it lost.

#![expect(clippy::print_stdout, reason = "its words are its interface")]

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

// <linux/netfilter/nfnetlink_queue.h>, <linux/netlink.h>
const PACKET: u16 = 0x0300;
const VERDICT: u16 = 0x0301;
const CONFIG: u16 = 0x0302;
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const PACKET_HEADER: u16 = 1;
const VERDICT_HEADER: u16 = 2;
const CONFIG_COMMAND: u16 = 1;
const CONFIG_PARAMETERS: u16 = 2;
const CONFIG_MOST: u16 = 3;
/// Of a message, and of what netfilter adds to it.
const HEADERS: usize = 16 + 4;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// Packets under way at once; further ones the kernel drops.
const MOST_PACKETS: u32 = 65_536;

fn main() -> Result<()> {
    let arguments: Vec<u64> = std::env::args()
        .skip(1)
        .map(|argument| argument.parse())
        .collect::<Result<_, _>>()?;
    let [lost_per_mille, delay_ms, seed] = arguments[..] else {
        bail!("fixture-link LOST_PER_MILLE DELAY_MS SEED");
    };
    let delay = Duration::from_millis(delay_ms);
    let mut random = StdRng::seed_from_u64(seed);
    let queue = Queue::open()?;
    println!("ready");
    let (mut seen, mut lost) = (0_u64, 0_u64);
    // All are as late as each other: the order stays.
    let mut under_way = VecDeque::<(Instant, u32)>::new();
    while queue.wait(under_way.front().map(|(due, _)| *due))? {
        for packet in queue.take()? {
            seen += 1;
            if random.random_range(0..1_000) < lost_per_mille {
                lost += 1;
                queue.decide(packet, DROP)?;
            } else {
                under_way.push_back((Instant::now() + delay, packet));
            }
        }
        while let Some((due, packet)) = under_way.pop_front() {
            if due > Instant::now() {
                under_way.push_front((due, packet));
                break;
            }
            queue.decide(packet, ACCEPT)?;
        }
    }
    println!("{seen} {lost}");
    Ok(())
}

/// The kernel's queue of packets.
struct Queue {
    socket: OwnedFd,
}

impl Queue {
    fn open() -> Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(NETFILTER),
        );
        let socket = socket.context("no netlink socket")?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        let queue = Self { socket };
        queue
            .configure(CONFIG_COMMAND, &[1, 0, 0, 0])
            .context("the queue is not given")?;
        // Their content is nobody's business here.
        queue.configure(CONFIG_PARAMETERS, &[0, 0, 0, 0, 1])?;
        queue.configure(CONFIG_MOST, &MOST_PACKETS.to_be_bytes())?;
        Ok(queue)
    }

    fn configure(&self, attribute: u16, value: &[u8]) -> Result<()> {
        self.send(CONFIG, REQUEST | ACKNOWLEDGE, attribute, value)?;
        let mut answer = [0; 4_096];
        let (_, length) = recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
        ensure!(
            length >= HEADERS && number16(&answer, 4) == ERROR,
            "no answer"
        );
        let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
        ensure!(code == 0, "refused: {}", Errno::from_raw_os_error(-code));
        Ok(())
    }

    fn decide(&self, packet: u32, verdict: u32) -> Result<()> {
        let [verdict, packet] = [verdict, packet].map(u32::to_be_bytes);
        self.send(
            VERDICT,
            REQUEST,
            VERDICT_HEADER,
            &[verdict, packet].concat(),
        )
    }

    /// One message with one attribute.
    fn send(&self, kind: u16, flags: u16, attribute: u16, value: &[u8]) -> Result<()> {
        let attribute_length = u16::try_from(4 + value.len())?;
        let length = HEADERS + value.len().next_multiple_of(4) + 4;
        let mut message = Vec::with_capacity(length);
        message.extend(u32::try_from(length)?.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        // No number, no sender; any family, version 0, queue 0.
        message.extend([0; 8 + 4]);
        message.extend(attribute_length.to_ne_bytes());
        message.extend(attribute.to_ne_bytes());
        message.extend(value);
        message.resize(length, 0);
        send(&self.socket, &message, SendFlags::empty()).context("the kernel takes nothing")?;
        Ok(())
    }

    /// Waits for packets, until then at most; `false`: standard input has ended.
    fn wait(&self, until: Option<Instant>) -> Result<bool> {
        let stdin = std::io::stdin();
        let mut waited = [
            PollFd::new(&self.socket, PollFlags::IN),
            PollFd::new(&stdin, PollFlags::IN),
        ];
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(Timespec::try_from).transpose()?;
        match poll(&mut waited, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(waited[1].revents().is_empty()),
            Err(error) => Err(error.into()),
        }
    }

    /// The numbers of the packets that are there.
    fn take(&self) -> Result<Vec<u32>> {
        let mut packets = Vec::new();
        let mut buffer = [0; 65_536];
        loop {
            match recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, length)) => packets.extend(numbers(&buffer[..length])),
                // It could not keep all of them: those are lost.
                Err(Errno::NOBUFS) => {}
                Err(Errno::AGAIN) => return Ok(packets),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The numbers of the packets that are told of.
fn numbers(mut messages: &[u8]) -> Vec<u32> {
    let mut found = Vec::new();
    while messages.len() >= HEADERS {
        let length = number32(messages, 0)
            .next_multiple_of(4)
            .min(messages.len());
        if length < HEADERS {
            break;
        }
        let (message, rest) = messages.split_at(length);
        messages = rest;
        let mut attributes = &message[HEADERS..];
        while number16(message, 4) == PACKET && attributes.len() >= 8 {
            if number16(attributes, 2) == PACKET_HEADER {
                let number = [attributes[4], attributes[5], attributes[6], attributes[7]];
                found.push(u32::from_be_bytes(number));
                break;
            }
            let length = usize::from(number16(attributes, 0)).next_multiple_of(4);
            attributes = attributes.get(length.max(4)..).unwrap_or_default();
        }
    }
    found
}

fn number16(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn number32(bytes: &[u8], at: usize) -> usize {
    let number = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    usize::try_from(u32::from_ne_bytes(number)).unwrap_or(usize::MAX)
}
