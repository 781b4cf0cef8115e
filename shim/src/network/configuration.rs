//! What the agent is told of a network.

use saya_agent_api::agent::{ConfigureNetworkRequest, NetworkSysctl};
use tokio::task::JoinHandle;

use super::error::NetworkError;
use super::{PodNetwork, sysctls};

/// What the agent is told of a network, the sysctls of which are still being read: that takes some milliseconds, for which
/// nobody need wait as long as the guest has other things to do.
pub(crate) struct Configuration {
    request: ConfigureNetworkRequest,
    sysctls: Option<JoinHandle<Result<Vec<NetworkSysctl>, NetworkError>>>,
}

impl PodNetwork {
    /// What the agent is to be told. Has to be called within a tokio runtime, which reads the sysctls on another thread.
    pub(crate) fn configuration(&self) -> Configuration {
        let request = self.configuration.clone();
        let names: Vec<String> = request.interfaces.iter().map(|interface| interface.name.clone()).collect();
        if names.is_empty() {
            return Configuration { request, sysctls: None };
        }
        let namespace = self.namespace();
        let read = move || sysctls::read(&namespace?, &names);
        Configuration { request, sysctls: Some(tokio::task::spawn_blocking(read)) }
    }
}

impl Configuration {
    /// Waits until all is known.
    ///
    /// # Errors
    /// The sysctls cannot be read.
    pub(crate) async fn complete(mut self) -> Result<ConfigureNetworkRequest, NetworkError> {
        if let Some(reading) = self.sysctls {
            self.request.sysctls = reading
                .await
                .unwrap_or_else(|error| Err(NetworkError::host("reading the sysctls")(error.into())))?;
        }
        Ok(self.request)
    }
}
