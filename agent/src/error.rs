//! What a request can fail with, and the ttrpc code that each failure has.

use std::io;

use ttrpc::Code;

/// A part of an OCI spec that cannot be carried out, named as in the JSON.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    /// The value is wrong in itself.
    #[error("{field}: {problem}")]
    Invalid {
        /// The path to the field, as `process.args`.
        field: String,
        /// What it holds and what would be right.
        problem: String,
    },
    /// The value is right, but it asks for something that does not exist here.
    #[error("{field}: not supported: {problem}")]
    NotSupported {
        /// The path to the field, as `linux.intelRdt`.
        field: String,
        /// Why not, and what to do instead.
        problem: String,
    },
}

impl SpecError {
    /// A wrong value.
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    /// A value that asks for too much.
    pub(crate) fn not_supported(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::NotSupported { field: field.into(), problem: problem.into() }
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No container has that id.
    #[error("container {0:?} does not exist")]
    NoSuchContainer(String),
    /// The container has no such process.
    #[error("container {container:?} has no process {process:?}")]
    NoSuchProcess {
        /// The container's id.
        container: String,
        /// The exec id.
        process: String,
    },
    /// The process has ended, so there is nobody to do that to.
    #[error("{0} has ended")]
    ProcessEnded(String),
    /// The id is taken.
    #[error("container {0:?} exists already")]
    ContainerExists(String),
    /// The exec id is taken.
    #[error("container {container:?} has a process {process:?} already")]
    ProcessExists {
        /// The container's id.
        container: String,
        /// The exec id.
        process: String,
    },
    /// The state of a container or process does not allow it.
    #[error("cannot {action} {subject}: it is {state}")]
    WrongState {
        /// What was asked.
        action: &'static str,
        /// Of whom.
        subject: String,
        /// What it is instead.
        state: &'static str,
    },
    /// The request itself is wrong.
    #[error("{0}")]
    InvalidRequest(String),
    /// The OCI spec is wrong, or asks for what there is not.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The child process that sets a container or process up has failed, and said why.
    #[error("{0}")]
    Setup(String),
    /// A stream that a request named has not connected in time.
    #[error("no stream {number} has connected within {seconds} s")]
    NoStream {
        /// The stream's number.
        number: u64,
        /// How long the agent has waited.
        seconds: u64,
    },
    /// A sysctl of the pod's network namespace that this kernel cannot have.
    #[error(
        "the pod's network namespace has the sysctl {name} set to {value:?}, which the guest's kernel {problem}: take it out \
         of the CNI configuration (plugin tuning), or of what else sets it"
    )]
    NetworkSysctl {
        /// Its file below /proc/sys, as sysctl(8) takes it.
        name: String,
        /// What it shall be.
        value: String,
        /// What the kernel does about it.
        problem: String,
    },
    /// The kernel refused.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried, with the path or value.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// The ttrpc code for this failure.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::NoSuchContainer(_) | Self::NoSuchProcess { .. } | Self::ProcessEnded(_) => Code::NOT_FOUND,
            Self::ContainerExists(_) | Self::ProcessExists { .. } => Code::ALREADY_EXISTS,
            Self::WrongState { .. } => Code::FAILED_PRECONDITION,
            Self::InvalidRequest(_) | Self::Spec(SpecError::Invalid { .. }) => Code::INVALID_ARGUMENT,
            Self::Spec(SpecError::NotSupported { .. }) => Code::UNIMPLEMENTED,
            Self::NetworkSysctl { .. } => Code::UNIMPLEMENTED,
            Self::NoStream { .. } => Code::DEADLINE_EXCEEDED,
            Self::Setup(_) | Self::System { .. } => Code::UNKNOWN,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error))
    }
}

/// The result of a request.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Says what was tried when the kernel refuses.
pub(crate) trait Action<T> {
    /// Names the action; `action` completes "cannot …".
    fn action(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Action<T> for std::result::Result<T, E> {
    fn action(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::System { action: action(), source: error.into() })
    }
}
