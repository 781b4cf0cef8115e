//! Why a call of the Task service fails, and the gRPC code that says so.

use std::future::Future;

use ttrpc::Code;

use crate::foreign_text::{MESSAGE_MAX, clean};

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct TaskError {
    code: Code,
    message: String,
}

#[allow(clippy::needless_pass_by_value, reason = "callers hand their error over: map_err(TaskError::failed)")]
impl TaskError {
    fn new(code: Code, message: impl ToString) -> Self {
        Self { code, message: message.to_string() }
    }

    /// No such container or process, or it has ended.
    pub(crate) fn not_found(message: impl ToString) -> Self {
        Self::new(Code::NOT_FOUND, message)
    }

    /// The id is in use.
    pub(crate) fn already_exists(message: impl ToString) -> Self {
        Self::new(Code::ALREADY_EXISTS, message)
    }

    /// Not in this state.
    pub(crate) fn failed_precondition(message: impl ToString) -> Self {
        Self::new(Code::FAILED_PRECONDITION, message)
    }

    /// A request or a spec that cannot be right.
    pub(crate) fn invalid_argument(message: impl ToString) -> Self {
        Self::new(Code::INVALID_ARGUMENT, message)
    }

    /// A call that there is no answer to.
    pub(crate) fn unimplemented(message: impl ToString) -> Self {
        Self::new(Code::UNIMPLEMENTED, message)
    }

    /// Anything that went wrong while it was done: containerd's own shim answers with this code too.
    pub(crate) fn failed(message: impl ToString) -> Self {
        Self::new(Code::UNKNOWN, message)
    }

    /// The same with words before it.
    pub(crate) fn context(self, words: &str) -> Self {
        Self { message: format!("{words}: {}", self.message), ..self }
    }

    /// The gRPC code.
    pub(crate) fn code(&self) -> Code {
        self.code
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code, error.message))
    }
}

impl From<ttrpc::proto::Status> for TaskError {
    /// The agent's answers carry codes as containerd means them.
    fn from(status: ttrpc::proto::Status) -> Self {
        Self { code: status.code(), message: clean(&status.message, MESSAGE_MAX) }
    }
}

/// Does the work of a call to its end, even when the caller has gone away: what is half done could not be undone.
pub(crate) async fn complete<T: Send + 'static>(
    work: impl Future<Output = Result<T, TaskError>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(TaskError::failed(error).into()),
    }
}
