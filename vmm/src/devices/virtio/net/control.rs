//! The control queue (virtio 1.2, 5.1.6.5): how many queue pairs the guest uses, and what frames for it may leave
//! undone.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use super::features;
use super::tap::Tap;
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::chain::{Chain, GuestSlices, TooShort};
use crate::devices::virtio::ring::{Ring, RingError};
use crate::devices::virtio::task_threads::{Ready, Task};
use crate::memory::GuestMemory;

/// The queues of a tap, of which as many are attached as the guest has said that it uses.
#[derive(Clone)]
pub(super) struct Taps(pub(super) Arc<[Arc<dyn Tap>]>);

impl Taps {
    /// Has the kernel put frames into the first `count` queues and no other. False: it refused.
    pub(super) fn use_pairs(&self, count: usize) -> bool {
        if self.0.len() == 1 {
            return count == 1;
        }
        let mut done = true;
        for (index, tap) in self.0.iter().enumerate() {
            let result = tap.set_attached(index < count);
            // The kernel calls it an error to attach what is attached, or to detach what is not. That the first
            // queue is attached at all shows in frames that arrive.
            done &= match result {
                Ok(()) => true,
                Err(error) => error.raw_os_error() == Some(libc::EINVAL),
            };
        }
        done
    }

    /// Says what frames for the guest may leave undone. False: the kernel refused.
    pub(super) fn set_offloads(&self, features: u64) -> bool {
        let offloads = features::guest_offloads(features);
        self.0.first().is_some_and(|tap| tap.set_offloads(offloads).is_ok())
    }
}

/// The control queue at work.
pub(super) struct Control {
    pub(super) ring: Ring,
    pub(super) memory: GuestMemory,
    pub(super) taps: Taps,
    /// What was agreed on; a command may not go beyond it.
    pub(super) features: u64,
    pub(super) interrupt: Interrupt,
}

impl Task for Control {
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.ring.notification()]
    }

    fn work(&mut self, _ready: Ready) -> Result<bool, RingError> {
        self.ring.suppress_notifications()?;
        let mut more = true;
        for _ in 0..self.ring.size() {
            let Some(chain) = self.ring.pop(&self.memory)? else {
                more = self.ring.request_notification()?;
                if more {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let answered = match Chain::parse(&self.memory, chain, self.ring.size()) {
                Ok(chain) => self.answer(chain),
                Err(_) => 0,
            };
            self.ring.push_used(head, answered)?;
        }
        self.ring.signal(&self.interrupt)?;
        Ok(more)
    }

    fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

impl Control {
    fn answer(&self, chain: Chain<'_>) -> u32 {
        let done = self.execute(chain.readable).unwrap_or(false);
        let answer = u8::try_from(if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR }).unwrap_or(u8::MAX);
        u32::from(chain.writable.copy_from(&[answer]).is_ok())
    }

    fn execute(&self, mut command: GuestSlices<'_>) -> Result<bool, TooShort> {
        let [class, what] = take(&mut command)?;
        Ok(match (u32::from(class), u32::from(what)) {
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                let count = usize::from(u16::from_le_bytes(take(&mut command)?));
                (1..=self.taps.0.len()).contains(&count) && self.taps.use_pairs(count)
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                let wanted = u64::from_le_bytes(take(&mut command)?);
                wanted & !self.features == 0 && self.taps.set_offloads(wanted)
            }
            _ => false,
        })
    }
}

fn take<const N: usize>(command: &mut GuestSlices<'_>) -> Result<[u8; N], TooShort> {
    let mut bytes = [0; N];
    command.split_to(N)?.copy_to(&mut bytes)?;
    Ok(bytes)
}
