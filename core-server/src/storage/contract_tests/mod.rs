//! The contract of Storage: one suite, run against every adapter. A test is a function over a
//! [`Bench`]; the list at the end makes it two tests. An adapter that does not pass does not ship.

mod expiry;
mod model;
mod quotas;
mod reads;
mod restarts;
mod watches;
mod writes;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::*;
use crate::error::{Classify as _, Reason};

/// Far enough for a loaded machine, near enough for a hung test.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes stores of one kind, and crashes them.
struct Bench {
    kind: AdapterKind,
    directory: tempfile::TempDir,
    crashes: usize,
    config: Config,
}

impl Bench {
    fn new(kind: AdapterKind) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let config = Config {
            adapter: kind,
            path: directory.path().join("first").join("store.db"),
            ..Config::default()
        };
        Self {
            kind,
            directory,
            crashes: 0,
            config,
        }
    }

    fn adapter(&self) -> Arc<dyn StorageAdapter> {
        self.config.open_adapter().expect("opens")
    }

    fn open(&self) -> Storage {
        Storage::open(self.adapter(), &self.config).expect("opens")
    }

    /// What a new core finds after `kill -9` in this moment: of the memory adapter its map, of
    /// SQLite a copy of its files as they are, with the old store still open.
    fn after_crash(&mut self, adapter: &Arc<dyn StorageAdapter>) -> Storage {
        let survivor = self.survivor(adapter);
        Storage::open(survivor, &self.config).expect("opens")
    }

    /// The engine of such a core.
    fn survivor(&mut self, adapter: &Arc<dyn StorageAdapter>) -> Arc<dyn StorageAdapter> {
        match self.kind {
            AdapterKind::Memory => Arc::clone(adapter),
            AdapterKind::Sqlite => {
                self.crashes += 1;
                let copy = self
                    .directory
                    .path()
                    .join(format!("crash-{}", self.crashes))
                    .join("store.db");
                copy_database(&self.config.path, &copy);
                self.config.path = copy;
                self.adapter()
            }
        }
    }
}

fn copy_database(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.parent().expect("has one")).expect("directory");
    for suffix in ["", "-wal"] {
        let (from, to) = (beside(from, suffix), beside(to, suffix));
        if from.exists() {
            std::fs::copy(from, to).expect("copies");
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

pub(super) fn namespace(text: &str) -> Namespace {
    Namespace::parse(text).expect(text)
}

pub(super) fn key(text: &str) -> Key {
    Key::parse(text).expect(text)
}

pub(super) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn set_op(name: &str, value: &str) -> Op {
    Op::set(key(name), Bytes::copy_from_slice(value.as_bytes())).expect("JSON")
}

fn delete_op(name: &str) -> Op {
    Op::Delete { key: key(name) }
}

fn apply(space: &Namespace, checks: &[(&str, u64)], ops: Vec<Op>) -> Apply {
    let check = |(name, revision): &(&str, u64)| Check {
        key: key(name),
        revision: Revision(*revision),
    };
    Apply {
        namespace: space.clone(),
        checks: checks.iter().map(check).collect(),
        ops,
        after_commit: None,
        after_commit_bytes: 0,
    }
}

pub(super) async fn set(
    storage: &Storage,
    space: &Namespace,
    name: &str,
    value: &str,
) -> Result<Written, Error> {
    let value = Bytes::copy_from_slice(value.as_bytes());
    storage.set(space, key(name), value, None, soon()).await
}

async fn value(storage: &Storage, space: &Namespace, name: &str) -> Option<String> {
    let entry = storage.get(space, &key(name)).await.expect("reads");
    entry.map(|entry| entry.value.as_str().to_owned())
}

macro_rules! contract {
    ($($theme:ident: $($test:ident),+ ;)+) => {
        contract!(@adapter memory Memory $($($theme $test)+)+);
        contract!(@adapter sqlite Sqlite $($($theme $test)+)+);
    };
    (@adapter $adapter:ident $kind:ident $($theme:ident $test:ident)+) => {
        mod $adapter {
            use super::{AdapterKind, Bench};

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$theme::$test(Bench::new(AdapterKind::$kind)).await;
            })+

            #[test]
            fn it_behaves_like_a_sorted_map() {
                super::model::it_behaves_like_a_sorted_map(AdapterKind::$kind);
            }
        }
    };
}

contract! {
    writes:
        revisions_rise_by_one_with_each_change,
        an_apply_is_all_or_nothing,
        of_many_who_compare_and_set_one_wins_each_round,
        writes_take_effect_in_the_order_of_the_calls,
        what_follows_a_commit_runs_before_the_answer_or_never,
        a_full_queue_refuses_at_once_and_recovers,
        a_write_still_queued_at_its_deadline_never_happens;
    reads:
        what_is_written_is_read_back_byte_for_byte,
        what_is_no_json_is_refused_with_its_place,
        a_reader_never_goes_back_while_others_write,
        keys_come_in_the_order_of_their_bytes_page_by_page,
        a_scan_ends_early_before_a_mebibyte_and_goes_on,
        many_keys_together_are_bounded_and_one_alone_is_not;
    expiry:
        what_has_expired_is_absent_at_once_and_then_removed,
        each_write_says_anew_how_long_it_lasts,
        many_expire_in_several_transactions_and_all_are_told,
        time_goes_on_while_no_core_runs,
        an_unset_clock_costs_nobody_an_entry,
        a_write_right_after_the_clock_was_set_costs_nobody_an_entry,
        an_unset_clock_before_a_restart_costs_nobody_an_entry,
        setting_the_clock_expires_nothing;
    watches:
        a_watch_tells_what_is_there_and_then_each_change,
        a_watch_resumes_behind_its_cursor_or_says_that_it_cannot,
        watchers_miss_nothing_while_others_write,
        a_slow_watcher_gets_the_newest_of_each_key_marked,
        prefixes_choose_and_bounds_are_kept;
    quotas:
        usage_is_what_is_there,
        empty_entries_are_not_free,
        an_owner_gains_nothing_by_more_namespaces,
        only_growth_beyond_a_quota_is_refused,
        lines_bring_everything_back_byte_for_byte,
        an_export_of_everything_brings_its_quotas_first,
        an_import_names_the_line_up_to_which_it_took_effect;
    restarts:
        what_was_answered_survives_a_crash,
        a_closed_store_refuses_and_opens_again_as_it_was;
}
