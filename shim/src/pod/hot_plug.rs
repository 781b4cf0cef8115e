//! Devices for a machine that runs: asks the VMM to attach them and to take them away.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use saya_vmm::control::{ControlError, Device, Event, PluggedDevice, Request, ShimEnd};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::foreign_text::{MESSAGE_MAX, clean};

/// How long a VMM may take to answer. It answers at once, unless what it has begun with the device in question hangs on
/// the host.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a device was not attached or detached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HotPlugError {
    /// The VMM refuses.
    #[error("the VMM: {0}")]
    Refused(String),
    /// The VMM cannot be asked.
    #[error("asking the VMM: {0}")]
    Control(#[from] ControlError),
    /// It is no more.
    #[error("the pod's virtual machine has stopped")]
    Stopped,
    /// It does not answer.
    #[error("the VMM has not answered for {} s", PATIENCE.as_secs())]
    Silent,
    /// It answers something else.
    #[error("the VMM has answered what it was not asked")]
    Nonsense,
}

/// What asks. Clones share it.
#[derive(Clone)]
pub(crate) struct HotPlug {
    control: Arc<AsyncFd<ShimEnd>>,
    /// Who waits for an answer, in the order of the questions.
    waiting: Arc<Mutex<VecDeque<oneshot::Sender<Event>>>>,
}

impl HotPlug {
    /// What asks over this socket, from which somebody else receives.
    pub(super) fn new(control: Arc<AsyncFd<ShimEnd>>) -> Self {
        Self { control, waiting: Arc::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<oneshot::Sender<Event>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An answer has come. One that nobody waits for has no meaning.
    pub(super) fn answered(&self, event: Event) {
        let waiting = self.waiting().pop_front();
        if waiting.is_none_or(|waiting| waiting.send(event).is_err()) {
            tracing::debug!("the VMM has answered what nobody waits for");
        }
    }

    /// No more answers will come.
    pub(super) fn stopped(&self) {
        self.waiting().clear();
    }

    /// Attaches a device with its descriptors.
    ///
    /// # Errors
    /// The VMM's refusal, or why there is none.
    pub(crate) async fn attach(
        &self,
        device: Device,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<PluggedDevice, HotPlugError> {
        match self.ask(&Request::Attach(device), descriptors).await? {
            Event::Attached(device) => Ok(device),
            _ => Err(HotPlugError::Nonsense),
        }
    }

    /// Takes the device in a slot away.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    pub(crate) async fn detach(&self, slot: u8) -> Result<(), HotPlugError> {
        match self.ask(&Request::Detach { slot }, &[]).await? {
            Event::Detached => Ok(()),
            _ => Err(HotPlugError::Nonsense),
        }
    }

    async fn ask(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<Event, HotPlugError> {
        let answer = {
            // Held until the question is sent: the order of both is the same.
            let mut waiting = self.waiting();
            self.control.get_ref().try_send(request, descriptors)?;
            let (sender, answer) = oneshot::channel();
            waiting.push_back(sender);
            answer
        };
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(Event::Refused { message })) => Err(HotPlugError::Refused(clean(&message, MESSAGE_MAX))),
            Ok(Ok(event)) => Ok(event),
            Ok(Err(_)) => Err(HotPlugError::Stopped),
            Err(_) => Err(HotPlugError::Silent),
        }
    }
}

#[cfg(test)]
mod tests {
    use saya_vmm::control;

    use super::*;
    use crate::readiness::register;

    fn pair() -> (HotPlug, control::VmmEnd) {
        let (shim, vmm) = control::pair().unwrap();
        shim.set_nonblocking(true).unwrap();
        (HotPlug::new(Arc::new(register(shim).unwrap())), vmm)
    }

    #[tokio::test]
    async fn answers_belong_to_the_questions_in_their_order() {
        let (plug, vmm) = pair();
        let answers = async {
            for slot in [3, 4] {
                while plug.waiting().len() < 2 {
                    tokio::task::yield_now().await;
                }
                assert_eq!(vmm.receive().unwrap().unwrap().0, Request::Detach { slot });
            }
            plug.answered(Event::Detached);
            plug.answered(Event::Refused { message: "there is no device in slot 4".into() });
        };
        let (first, second, ()) = tokio::join!(plug.detach(3), plug.detach(4), answers);
        first.unwrap();
        assert!(second.unwrap_err().to_string().contains("slot 4"));
    }

    #[tokio::test]
    async fn a_machine_that_stops_answers_nobody() {
        let (plug, _vmm) = pair();
        let stop = async {
            while plug.waiting().is_empty() {
                tokio::task::yield_now().await;
            }
            plug.stopped();
        };
        let (answer, ()) = tokio::join!(plug.detach(0), stop);
        assert!(matches!(answer, Err(HotPlugError::Stopped)));
    }

    #[tokio::test]
    async fn an_answer_to_no_question_is_nothing() {
        let (plug, _vmm) = pair();
        plug.answered(Event::Detached);
        assert!(plug.waiting().is_empty());
    }
}
