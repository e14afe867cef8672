use std::{io, mem::MaybeUninit, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{Timespec, epoll},
    fd::AsFd,
    io::Errno,
};

const EVENTS_MAX: usize = 1_024;

/// Which of many sockets have news.
#[derive(Debug)]
pub(crate) struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// From now on, and until it is closed, every change of the socket is told once, with this number.
    pub(crate) fn add(&self, socket: impl AsFd, number: usize) -> io::Result<()> {
        let changes =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(number as u64), changes)?)
    }

    /// Waits for news and appends whose they are.
    pub(crate) fn wait(&self, longest: Duration, ready: &mut Vec<usize>) -> io::Result<()> {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); EVENTS_MAX];
        let timeout =
            Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: i64::from(longest.subsec_nanos()) };
        match epoll::wait(&self.epoll, &mut events, Some(&timeout)) {
            Ok((events, _)) => ready.extend(events.iter().map(|event| event.data.u64() as usize)),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }
}
