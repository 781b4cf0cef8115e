//! What a guest may send the shim as answers of its agent, and the host's requests as the agent takes them. The first byte
//! chooses the message. What can be read can be written, and is read as the same again.

use protobuf::Message;
use saya_agent_api::agent::{
    ConfigureNetworkRequest, ContainerStatsResponse, CreateContainerRequest, CreateProcessRequest,
    CreateResponse, ListProcessesResponse, SignalProcessRequest, UpdateContainerRequest,
    WaitOutOfMemoryResponse, WaitProcessResponse,
};

pub(crate) fn run(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 11 {
        0 => read::<CreateResponse>(bytes),
        1 => read::<WaitProcessResponse>(bytes),
        2 => read::<ListProcessesResponse>(bytes),
        3 => read::<ContainerStatsResponse>(bytes),
        4 => read::<WaitOutOfMemoryResponse>(bytes),
        5 => read::<CreateContainerRequest>(bytes),
        6 => read::<CreateProcessRequest>(bytes),
        7 => read::<SignalProcessRequest>(bytes),
        8 => read::<UpdateContainerRequest>(bytes),
        9 => read::<ConfigureNetworkRequest>(bytes),
        _ => read::<ttrpc::Response>(bytes),
    }
}

fn read<T: Message>(bytes: &[u8]) {
    let Ok(message) = T::parse_from_bytes(bytes) else { return };
    let written = message.write_to_bytes().expect("what was read is complete");
    let again = T::parse_from_bytes(&written).expect("what was written is a message");
    assert!(again == message, "another message than before");
}
