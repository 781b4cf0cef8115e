//! Tests of the device as a whole; those of its parts are beside them.

mod connections;
mod device;
mod hostile;
mod stream_model;
