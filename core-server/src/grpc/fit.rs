//! Errors cut to what trailers can carry. Pure.
//!
//! Frames of a channel carry a provider's error whole, but a unary caller gets it in HTTP/2 headers, and
//! gRPC libraries take no more than 8 KiB (C core, Java) or 16 KiB of those (hyper): above it they
//! report a broken protocol instead of the error. So an error that is too long is cut and marked.

use core_proto::google::rpc;
use prost::Message as _;

/// Room for message and details, as sent; the other trailers need less than 1 KiB of the 8.
const MAX_BYTES: usize = 7 << 10;
/// Of it for details, before base64.
const MAX_DETAIL_BYTES: usize = 3 << 10;
/// Room for [`mark`] and for the frame of the details.
const SPARE_BYTES: usize = 256;

/// What was cut: the value of the trailer `core-cut`.
pub(super) type Cut = Option<&'static str>;

/// Cuts a body that does not fit trailers: first details as a whole, those that come first are kept
/// first, then the end of the message.
pub(super) fn fit(body: rpc::Status) -> (rpc::Status, Cut) {
    let rpc::Status {
        code,
        message,
        details,
    } = body;
    let count = details.len();
    let mut left = MAX_DETAIL_BYTES;
    let details: Vec<_> = details
        .into_iter()
        .filter(|detail| {
            // Its tag and length with it.
            let size = detail.encoded_len() + 8;
            let fits = size <= left;
            left -= if fits { size } else { 0 };
            fits
        })
        .collect();
    let room = MAX_BYTES - SPARE_BYTES - base64(MAX_DETAIL_BYTES - left);
    let short = match prefix(&message, room) {
        short if short.len() == message.len() => None,
        short => Some(mark(short, message.len())),
    };
    let cut = match (short.is_some(), details.len() < count) {
        (false, false) => None,
        (true, false) => Some("message"),
        (false, true) => Some("details"),
        (true, true) => Some("message,details"),
    };
    let message = short.unwrap_or(message);
    let body = rpc::Status {
        code,
        message,
        details,
    };
    (body, cut)
}

fn mark(short: &str, whole_bytes: usize) -> String {
    format!("{short} [cut: {whole_bytes} bytes in all]")
}

const fn base64(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

/// The longest beginning of a message that fits. It travels twice: percent-encoded as `grpc-message`,
/// and in the details in base64.
fn prefix(message: &str, room: usize) -> &str {
    let mut thirds_left = 3 * room;
    for (at, character) in message.char_indices() {
        let bytes = character.len_utf8();
        let escaped = if is_plain(character) { 1 } else { 3 * bytes };
        let thirds = 3 * escaped + 4 * bytes;
        if thirds > thirds_left {
            return &message[..at];
        }
        thirds_left -= thirds;
    }
    message
}

/// Never percent-encoded, whoever encodes.
fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-_.~".contains(character)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::status::from_failure;
    use super::*;
    use crate::error::{ApplicationFailure, Failure};

    /// What gRPC libraries take by default at least, counted as HTTP/2 counts headers.
    const USUAL_LIMIT: usize = 8 << 10;

    fn body(message: String, details: &[usize]) -> rpc::Status {
        let detail = |bytes: &usize| prost_types::Any {
            type_url: "type.example/of.it".to_owned(),
            value: vec![7; *bytes],
        };
        rpc::Status {
            code: 5,
            message,
            details: details.iter().map(detail).collect(),
        }
    }

    /// Bytes of the response's headers and trailers.
    fn header_bytes(body: &rpc::Status) -> usize {
        let failure = ApplicationFailure {
            code: body.code,
            message: body.message.clone(),
            details: body
                .details
                .iter()
                .map(|detail| (detail.type_url.clone(), detail.value.clone().into()))
                .collect(),
        };
        let failure = Failure::Application(std::sync::Arc::new(failure));
        let response = from_failure(failure).into_http::<()>();
        let size = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            name.as_str().len() + value.len() + 32
        };
        // `:status` and `date` come with it.
        response.headers().iter().map(size).sum::<usize>() + 120
    }

    #[test]
    fn what_fits_passes_verbatim_and_the_rest_is_cut_and_marked() {
        let cases = [
            (10, &[][..], None, 0),
            (1_000, &[1_000, 1_000][..], None, 2),
            (200_000, &[][..], Some("message"), 0),
            (200_000, &[2_000][..], Some("message"), 1),
            (10, &[200_000, 100][..], Some("details"), 1),
            (
                100_000,
                &[4_000, 2_000, 2_000][..],
                Some("message,details"),
                1,
            ),
        ];
        for (message, details, expected, kept) in cases {
            let whole = body("x".repeat(message), details);
            let (fitted, cut) = fit(whole.clone());
            assert_eq!(cut, expected, "{message} {details:?}");
            assert_eq!(fitted.details.len(), kept, "{message} {details:?}");
            if cut.is_none() {
                assert_eq!(fitted, whole);
            }
            if message > 100_000 {
                let mark = format!(" [cut: {message} bytes in all]");
                assert!(fitted.message.ends_with(&mark), "{}", fitted.message);
                assert!(fitted.message.len() > 700, "as much as fits");
            }
        }
    }

    proptest! {
        #[test]
        fn no_error_is_longer_than_usual_clients_take(
            text in "[ a-z\\n\u{e9}\u{4e2d}\u{1f600}%]{0,40}",
            times in 0..8_000_usize,
            details in prop::collection::vec(0..6_000_usize, 0..6),
        ) {
            let whole = body(text.repeat(times), &details);
            let bytes = header_bytes(&whole);
            prop_assert!(bytes <= USUAL_LIMIT, "{bytes}");
        }
    }
}
