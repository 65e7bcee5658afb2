//! Following the changes of the state or of the storage.

use serde::Serialize;
use tonic::Streaming;

use crate::connect::Core;
use crate::failure::Failure;
use crate::output::{Cell, Form, Output, Tone, end_with_reader};

/// The JSON shape of the line at which everything that was there has been told.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename = "snapshot_end")]
struct SnapshotEnd {
    revision: u64,
}

/// Shows what a watch tells, until so many changes were shown or the core ends it. `told` takes a message
/// apart: its changes, and the revision of a snapshot that ends with it.
///
/// # Errors
/// How the watch ended, if it was not by its count.
pub(crate) async fn follow<M, C>(
    core: &Core,
    mut stream: Streaming<M>,
    count: Option<u64>,
    output: &mut Output,
    told: impl Fn(M) -> (Vec<C>, Option<u64>),
    show: impl Fn(C, &mut Output) -> Result<(), Failure>,
) -> Result<(), Failure> {
    end_with_reader();
    let mut left = count.unwrap_or(u64::MAX);
    while let Some(message) = core.next("", &mut stream).await? {
        let (changes, snapshot_end) = told(message);
        for change in changes {
            show(change, output)?;
            left -= 1;
            if left == 0 {
                return Ok(());
            }
        }
        if let Some(revision) = snapshot_end
            && output.form() == Form::Json
        {
            output.json(&SnapshotEnd { revision })?;
        }
        output.flush()?;
    }
    Err(core.stream_ended())
}

/// Whether changes before this one were left out.
pub(crate) fn left_out(conflated: bool) -> Cell {
    let words = if conflated {
        "(changes between were left out)"
    } else {
        ""
    };
    Cell::new(words, Tone::Waiting)
}
