//! Bounded waits.

use std::future::Future;
use std::time::Duration;

/// Time between two looks of [`eventually!`](crate::eventually).
pub const POLL: Duration = Duration::from_millis(10);

/// How long a test waits for what must happen: 30 s, or `CORE_TEST_PATIENCE` in seconds. It is far
/// more than anything needs; only a failing test uses it up.
#[must_use]
pub fn patience() -> Duration {
    let seconds = std::env::var("CORE_TEST_PATIENCE")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(30))
}

/// Waits for `future`, for [`patience`] at most.
///
/// # Panics
/// When it does not complete in time; `what` says what did not happen.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(patience(), future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {:?}: {what}", patience()),
    }
}

/// Waits until an expression is true, looking at it again and again for [`crate::patience`]
/// at most. It may `.await`. For facts that nobody signals; where there is a stream of news, read it.
#[macro_export]
macro_rules! eventually {
    ($condition:expr $(, $($told:tt)+)?) => {{
        let deadline = tokio::time::Instant::now() + $crate::patience();
        loop {
            if $condition {
                break;
            }
            if tokio::time::Instant::now() > deadline {
                #[allow(unused_mut, unused_assignments)]
                let mut told = String::new();
                $(told = format!(": {}", format_args!($($told)+));)?
                panic!("not within {:?}: {}{told}", $crate::patience(), stringify!($condition));
            }
            tokio::time::sleep($crate::POLL).await;
        }
    }};
}
