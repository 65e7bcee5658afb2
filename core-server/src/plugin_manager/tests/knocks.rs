//! Another instance at the door of one that holds the run: whoever lives keeps it.
//!
//! The clock is tokio's own and stands still: a sleep moves it on and waits for nothing.

use super::*;
use crate::error::{Classify as _, Reason};

/// An `Open` as `two`, and how long its answer took.
async fn knock(home: &Home) -> (Result<Link, Error>, Duration) {
    // What the holder did before is no answer: the clock stands still between.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let begin = Instant::now();
    let another = Hello {
        ready: true,
        ..hello("two")
    };
    let answer = home.open("lamp", another).await;
    (answer, begin.elapsed())
}

fn refused(answer: Result<Link, Error>) -> (Reason, Duration) {
    let refusal = answer.err().expect("refused");
    (refusal.reason(), refusal.retry_after().expect("advice"))
}

fn about(took: Duration, seconds: f64) {
    let took = took.as_secs_f64();
    assert!((seconds - 0.01..seconds + 0.2).contains(&took), "{took} s");
}

/// Answers the next ping.
async fn pong(link: &mut Link) {
    let Outbound::Ping { nonce } = link.next().await else {
        panic!("no ping")
    };
    link.run.note_pong(nonce, Instant::now());
}

#[tokio::test(start_paused = true)]
async fn who_gives_no_sign_of_life_gives_way() {
    let home = Home::new(vec![remote("lamp", &[])]);
    let (link, connection) = home.pinged("lamp").await;
    connection.note(Instant::now());
    let old = Arc::clone(&link.run);
    // It reads what it is sent, as a kernel does for a process that stands still.
    let mut lamp = Obedient::new(&home.scope, link, |_| Ok(()));
    tokio::time::sleep(Duration::from_millis(1_700)).await;

    let (answer, took) = knock(&home).await;
    about(took, 2.0);
    let (reason, retry_after) = refused(answer);
    assert_eq!(reason, Reason::Backoff, "as after any lost run");
    assert!(retry_after < Duration::from_millis(320), "{retry_after:?}");
    assert!(old.ended().is_cancelled());
    lamp.ended().await;
    let info = home.phase("lamp", Phase::Backoff).await;
    let message = "another instance came, and it gave no sign of life for 2 s";
    assert_eq!((info.reason, info.message.as_str()), ("gave_way", message));

    tokio::time::sleep(retry_after).await;
    home.phase("lamp", Phase::Connecting).await;
    let (answer, took) = knock(&home).await;
    let link = answer.expect("admitted");
    about(took, 0.0);
    assert_eq!(link.run.generation().0, 2);
    home.phase("lamp", Phase::Ready).await;
    link.lose().await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn who_answers_keeps_its_run_and_the_other_one_is_told_at_once() {
    let home = Home::new(vec![remote("lamp", &[])]);
    let (mut link, connection) = home.pinged("lamp").await;
    // At any moment between two pings, also while one is under way.
    for wait in [0, 1_700, 4_900, 5_000] {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let pongs = async {
            loop {
                pong(&mut link).await;
            }
        };
        let (answer, took) = tokio::select! {
            answered = knock(&home) => answered,
            () = pongs => unreachable!("it never completes"),
        };
        assert_eq!(
            refused(answer),
            (Reason::AlreadyConnected, Duration::from_secs(10))
        );
        about(took, 0.0);
    }
    // It answers late, or is heard by anything else.
    let late = async {
        tokio::time::sleep(Duration::from_millis(1_800)).await;
        pong(&mut link).await;
    };
    let ((answer, took), ()) = tokio::join!(knock(&home), late);
    assert_eq!(refused(answer).0, Reason::AlreadyConnected);
    about(took, 1.8);
    let heard = async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        connection.note(Instant::now());
    };
    let ((answer, took), ()) = tokio::join!(knock(&home), heard);
    assert_eq!(refused(answer).0, Reason::AlreadyConnected);
    about(took, 0.9);
    assert_eq!(home.info("lamp").generation.0, 1);
    assert!(!link.run.ended().is_cancelled());
    link.lose().await;
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn whose_channel_is_lost_has_two_seconds_to_come_back() {
    for comes_back in [false, true] {
        let home = Home::new(vec![remote("lamp", &[])]);
        let (link, _connection) = home.pinged("lamp").await;
        let own = Arc::clone(&link.run);
        // Its last byte comes before its loss.
        tokio::time::sleep(Duration::from_millis(100)).await;
        link.lose().await;
        home.phase("lamp", Phase::Suspended).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let returning = async {
            tokio::time::sleep(Duration::from_millis(1_200)).await;
            if !comes_back {
                return None;
            }
            let link = home.open("lamp", hello("lamp")).await.expect("resumed");
            let connection = crate::channel::LastRead::new(Instant::now());
            link.run.came_over(&connection);
            Some((link, connection))
        };
        let ((answer, took), back) = tokio::join!(knock(&home), returning);
        if comes_back {
            assert_eq!(refused(answer).0, Reason::AlreadyConnected);
            about(took, 1.2);
            assert_eq!(back.expect("back").0.run.id(), own.id());
        } else {
            assert_eq!(refused(answer).0, Reason::Backoff);
            about(took, 1.5);
            let info = home.phase("lamp", Phase::Backoff).await;
            assert_eq!(info.reason, "gave_way");
        }
        home.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_run_ends_for_who_has_gone_and_only_one_waits() {
    let home = Home::new(vec![remote("lamp", &[])]);
    let (link, _connection) = home.pinged("lamp").await;
    let own = Arc::clone(&link.run);
    let _lamp = Obedient::new(&home.scope, link, |_| Ok(()));
    let (first, second) = tokio::join!(timeout(Duration::from_secs(1), knock(&home)), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        knock(&home).await
    });
    assert!(first.is_err(), "it waited and went");
    about(second.1, 0.0);
    assert_eq!(refused(second.0).0, Reason::AlreadyConnected);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!own.ended().is_cancelled());
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_late_core_gives_the_holder_its_time_anew_and_a_stopping_one_refuses_who_waits() {
    let home = Home::new(vec![remote("lamp", &[])]);
    let (mut link, _connection) = home.pinged("lamp").await;
    let late = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        // As after SIGSTOP and SIGCONT: nobody ran meanwhile.
        tokio::time::advance(Duration::from_secs(20)).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        // The one from before, and the one that was sent since.
        pong(&mut link).await;
    };
    let ((answer, _), ()) = tokio::join!(knock(&home), late);
    assert_eq!(refused(answer).0, Reason::AlreadyConnected);
    assert!(!link.run.ended().is_cancelled());

    let _lamp = Obedient::new(&home.scope, link, |_| Ok(()));
    let (answer, _) = tokio::join!(knock(&home), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        home.manager.shutdown(soon()).await
    });
    about(answer.1, 0.5);
    let refusal = answer.0.err().expect("refused");
    assert_eq!(refusal.reason(), Reason::ShuttingDown);
    home.close().await;
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_asked_keeps_its_run() {
    let home = Home::new(vec![remote("lamp", &[])]);
    let (link, _connection) = home.pinged("lamp").await;
    // Nothing is taken out of its outbox: the ping does not leave the core.
    let (answer, took) = knock(&home).await;
    about(took, 2.0);
    assert_eq!(refused(answer).0, Reason::AlreadyConnected);
    assert!(!link.run.ended().is_cancelled());
    link.lose().await;
    home.close().await;
}
