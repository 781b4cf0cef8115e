//! Stopping all processes of a cgroup, and letting them go on.

use std::time::Duration;

use super::{Cgroup, events};
use crate::error::{Error, Result};

/// How long processes may take to stop. One that waits for a device without end never does.
const PATIENCE: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Stops every process, and answers when all stand. If they do not, all go on.
    pub(crate) async fn freeze(&self) -> Result<()> {
        self.write("cgroup.freeze", "1")?;
        match self.wait_for_frozen(1).await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.write("cgroup.freeze", "0")?;
                Err(error)
            }
        }
    }

    /// Lets every process go on.
    pub(crate) async fn thaw(&self) -> Result<()> {
        self.write("cgroup.freeze", "0")?;
        self.wait_for_frozen(0).await
    }

    async fn wait_for_frozen(&self, frozen: u64) -> Result<()> {
        let file = self.file("cgroup.events");
        let reached = events::wait_for(&file, |text| events::value(text, "frozen") == Some(frozen));
        match tokio::time::timeout(PATIENCE, reached).await {
            Ok(result) => result,
            Err(_) => {
                let verb = if frozen == 1 { "stop" } else { "go on" };
                Err(Error::Setup(format!("the processes did not {verb} within {} s", PATIENCE.as_secs())))
            }
        }
    }
}
