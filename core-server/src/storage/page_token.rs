//! Page tokens: where the next page begins, bound to the query. Pure.
//!
//! A token is hex of a digest and the last key of the page before. The digest covers the key and all
//! of the query but the page size, so a token that was altered, or given with another query, is
//! refused instead of answered with a page of something else. It holds no secret: the key that it
//! names lies inside what the caller may read anyway. So it survives a restart of the core.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::error::Error;
use super::names::{Direction, Key};
use super::request::Query;

const DIGEST_BYTES: usize = 8;

/// What is read a page at a time; a token of the one is none of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listing {
    Keys,
    Entries,
}

/// The token for the page after the one that ended with `last`.
pub(super) fn write(listing: Listing, query: &Query, last: &Key) -> String {
    let digest = digest(listing, query, last.as_str());
    let mut token = String::with_capacity(2 * (DIGEST_BYTES + last.as_str().len()));
    for byte in digest.iter().chain(last.as_str().as_bytes()) {
        write!(token, "{byte:02x}").expect("a String takes everything");
    }
    token
}

/// The last key of the page before.
pub(super) fn read(listing: Listing, query: &Query) -> Result<Key, Error> {
    let token = query.page_token.as_bytes();
    if token.len() > 2 * (DIGEST_BYTES + Key::MAX_BYTES) || !token.len().is_multiple_of(2) {
        return Err(Error::BadPageToken);
    }
    let bytes: Option<Vec<u8>> = token
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect();
    let bytes = bytes.ok_or(Error::BadPageToken)?;
    let (given, last) = bytes
        .split_at_checked(DIGEST_BYTES)
        .ok_or(Error::BadPageToken)?;
    let last = std::str::from_utf8(last).map_err(|_| Error::BadPageToken)?;
    if given != digest(listing, query, last) {
        return Err(Error::BadPageToken);
    }
    Key::parse(last).map_err(|_| Error::BadPageToken)
}

/// Lower-case only: each token has one spelling.
fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

fn digest(listing: Listing, query: &Query, last: &str) -> [u8; DIGEST_BYTES] {
    let mut hash = Sha256::new();
    hash.update([
        // The format's version.
        1,
        u8::from(listing == Listing::Entries),
        u8::from(query.direction == Direction::Descending),
    ]);
    for part in [
        query.namespace.as_str(),
        &query.prefix,
        &query.start_after,
        last,
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut short = [0; DIGEST_BYTES];
    short.copy_from_slice(&hash.finalize()[..DIGEST_BYTES]);
    short
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::names::Namespace;

    fn query() -> Query {
        let mut query = Query::all(Namespace::parse("lamp").expect("good"));
        query.prefix = "k".to_owned();
        query
    }

    #[test]
    fn a_token_comes_back_as_the_key_it_was_made_of() {
        let key = Key::parse("küche\u{10FFFF}").expect("good");
        let mut query = query();
        query.page_token = write(Listing::Keys, &query, &key);
        query.page_size = 7;
        assert_eq!(read(Listing::Keys, &query).expect("its own"), key);
    }

    #[test]
    fn a_token_of_another_query_is_refused() {
        let key = Key::parse("key").expect("good");
        let token = write(Listing::Keys, &query(), &key);
        let with = |change: fn(&mut Query)| {
            let mut query = query();
            query.page_token.clone_from(&token);
            change(&mut query);
            query
        };
        let others = [
            with(|query| query.prefix.clear()),
            with(|query| query.start_after.push('a')),
            with(|query| query.direction = Direction::Descending),
            with(|query| query.namespace = Namespace::parse("lamps").expect("good")),
            with(|query| query.page_token.make_ascii_uppercase()),
            with(|query| query.page_token.truncate(4)),
            with(|query| query.page_token.push('0')),
            with(|query| query.page_token = "zz".repeat(20)),
            with(|query| query.page_token = "0".repeat(4_000)),
        ];
        for query in others {
            assert!(
                matches!(read(Listing::Keys, &query), Err(Error::BadPageToken)),
                "{query:?}"
            );
        }
        let own = with(|_| {});
        assert!(matches!(
            read(Listing::Entries, &own),
            Err(Error::BadPageToken)
        ));
    }

    proptest! {
        #[test]
        fn one_altered_digit_is_noticed(at in 0_usize..22, digit in "[0-9a-f]") {
            let key = Key::parse("key").expect("good");
            let mut query = query();
            let token = write(Listing::Entries, &query, &key);
            query.page_token.clone_from(&token);
            query.page_token.replace_range(at..=at, &digit);
            prop_assert_eq!(read(Listing::Entries, &query).is_ok(), query.page_token == token);
        }
    }
}
