//! What a client of the monitor sends: any bytes, in any pieces. The first byte of the input
//! decides how large the pieces are.
#![no_main]

use libfuzzer_sys::fuzz_target;
use monitor::{Framing, requests};
use qapi::command::{
    BlkdebugClear, BlkdebugInject, BlockExportCont, BlockJobCancel, BlockJobId, BlockJobSetSpeed,
    BlockLatencyHistogramSet, BlockResize, BlockdevCreate, HumanMonitorCommand, JobId, NoArguments,
    NodeAcceptLoss, QmpCapabilities, QomGet, QomList, QomListProperties, QomListTypes, QomSet,
    QueryBlockstats, QueryHeld, QueryNamedBlockNodes, QuotaSet, Transaction,
};
use qapi::de::{Mode, from_object};
use qapi::wire::{Layout, Request, Response, to_line};
use qapi::{Object, json};
use serde::Serialize;
use serde::de::DeserializeOwned;
use standfast_fuzz::check_error;
use std::fmt::Debug;

fuzz_target!(|bytes: &[u8]| {
    let Some((&piece_bytes, bytes)) = bytes.split_first() else {
        return;
    };
    let whole = requests(bytes);
    let mut pieces = Vec::new();
    let mut framing = Framing::new();
    for piece in bytes.chunks(usize::from(piece_bytes).max(1)) {
        framing.feed(piece, |request| pieces.push(request));
    }
    assert_eq!(whole, pieces, "requests depend on how they arrive");
    for request in whole {
        let response = match request {
            Ok(Request {
                execute: _,
                is_oob: _,
                arguments,
                id,
            }) => {
                check_arguments(&arguments);
                Response::new(Ok(arguments.into()), id)
            }
            Err(bad) => {
                check_error(&bad.error);
                Response::new(Err(bad.error), bad.id)
            }
        };
        check_response(&response);
    }
});

/// Whatever the command, its arguments are taken or refused with a reason; every type is tried,
/// since which command goes with which is the client's choice.
fn check_arguments(arguments: &Object) {
    read::<NoArguments>(arguments);
    read::<QmpCapabilities>(arguments);
    read::<BlockResize>(arguments);
    read::<BlockLatencyHistogramSet>(arguments);
    read::<QueryBlockstats>(arguments);
    read::<QueryNamedBlockNodes>(arguments);
    read::<HumanMonitorCommand>(arguments);
    read::<QuotaSet>(arguments);
    read::<BlkdebugInject>(arguments);
    read::<BlkdebugClear>(arguments);
    read::<BlockExportCont>(arguments);
    read::<NodeAcceptLoss>(arguments);
    read::<QueryHeld>(arguments);
    read::<BlockdevCreate>(arguments);
    read::<JobId>(arguments);
    read::<BlockJobId>(arguments);
    read::<BlockJobCancel>(arguments);
    read::<BlockJobSetSpeed>(arguments);
    read::<Transaction>(arguments);
    read::<QomList>(arguments);
    read::<QomGet>(arguments);
    read::<QomSet>(arguments);
    read::<QomListTypes>(arguments);
    read::<QomListProperties>(arguments);
}

fn read<T: Debug + PartialEq + DeserializeOwned + Serialize>(arguments: &Object) {
    match from_object::<T>(arguments, Mode::Json) {
        Ok(typed) => {
            let again = serde_json::to_value(&typed).expect("arguments have string keys");
            let object = again.as_object().expect("arguments are an object");
            assert_eq!(from_object::<T>(object, Mode::Json).as_ref(), Ok(&typed));
        }
        Err(error) => check_error(&error),
    }
}

/// A response is one line whose JSON has the members and values of the response, whatever the
/// client made it echo.
fn check_response(response: &Response) {
    let line = to_line(response, Layout::Compact);
    let text = std::str::from_utf8(&line).expect("a response is UTF-8");
    assert_eq!(text.find(['\r', '\n']), Some(text.len() - 2), "{text:?}");
    let expected = serde_json::to_value(response).expect("a response has string keys");
    assert_eq!(json::parse(text).as_ref(), Ok(&expected), "{text:?}");
}
