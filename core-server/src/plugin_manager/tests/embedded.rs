//! Plugins inside the core's process: threads that end, panic, or hang.

use core_proto::embed::{Embedding, RunError};
use std::pin::Pin;

use super::*;

/// What the plugin does with its run.
#[derive(Clone, Copy)]
enum Manner {
    Waits,
    Panics,
    Blocks,
}

struct Played {
    manner: Manner,
    token: watch::Sender<String>,
    release: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

impl EmbeddedPlugin for Played {
    fn name(&self) -> &str {
        "lamp"
    }

    fn requires(&self) -> Vec<String> {
        Vec::new()
    }

    fn run(
        self: Arc<Self>,
        embedding: Embedding,
    ) -> Pin<Box<dyn Future<Output = Result<(), RunError>> + Send>> {
        Box::pin(async move {
            self.token.send_replace(embedding.token);
            match self.manner {
                Manner::Waits => std::future::pending().await,
                Manner::Panics => panic!("on purpose"),
                Manner::Blocks => {
                    let release = self.release.lock().take();
                    // Until the test's end: a plugin that blocks its thread.
                    release.map(|release| release.recv());
                    Ok(())
                }
            }
        })
    }
}

fn home(manner: Manner) -> (Home, watch::Receiver<String>, std::sync::mpsc::Sender<()>) {
    let (token, tokens) = watch::channel(String::new());
    let (release, released) = std::sync::mpsc::channel();
    let plugin = Played {
        manner,
        token,
        release: Mutex::new(Some(released)),
    };
    let embedded: HashMap<_, Arc<dyn EmbeddedPlugin>> =
        [(name("lamp"), Arc::new(plugin) as Arc<dyn EmbeddedPlugin>)].into();
    let mut manifest = manifest("lamp", Kind::Embedded);
    manifest.timeouts.term = Duration::from_millis(200);
    let data = Arc::new(tempfile::tempdir().expect("a directory"));
    (Home::build(vec![manifest], embedded, data), tokens, release)
}

impl Home {
    async fn join(&self, tokens: &mut watch::Receiver<String>) -> Obedient {
        let token = timeout(PATIENCE, tokens.wait_for(|token| !token.is_empty())).await;
        let token = token.expect("in time").expect("there").clone();
        let credential = self.credentials.verify(&token).expect("valid");
        let link = self
            .open_as(credential, hello("i"))
            .await
            .expect("admitted");
        Obedient::new(&self.scope, link, |_| Ok(()))
    }
}

#[tokio::test]
async fn an_embedded_plugin_lives_like_any_other() {
    let (home, mut tokens, _release) = home(Manner::Waits);
    let plugin = home.join(&mut tokens).await;
    home.phase("lamp", Phase::Ready).await;
    let info = home.manager.unload("lamp", soon()).await.expect("unloaded");
    assert_eq!(
        (info.state, info.kind),
        (PluginState::Unloaded, PluginKind::Embedded)
    );
    assert_eq!(
        plugin.got(),
        ["on_load", "on_start", "on_stop", "on_unload"]
    );
    home.close().await;
}

#[tokio::test]
async fn a_panic_ends_the_run_and_nothing_else() {
    let (home, _tokens, _release) = home(Manner::Panics);
    let info = home.phase("lamp", Phase::Backoff).await;
    assert_eq!(
        (info.reason, info.message.as_str()),
        ("exited", "it panicked: on purpose")
    );
    home.close().await;
}

#[tokio::test]
async fn one_that_blocks_is_reported_and_shutdown_does_not_wait_for_ever() {
    let (home, mut tokens, release) = home(Manner::Blocks);
    let _plugin = home.join(&mut tokens).await;
    home.phase("lamp", Phase::Ready).await;
    let error = home.manager.unload("lamp", soon()).await.expect_err("hung");
    assert!(error.to_string().contains("has not ended"), "{error}");
    assert_eq!(
        (home.info("lamp").phase, home.info("lamp").reason),
        (Phase::Unloading, "hung")
    );
    let report = home
        .manager
        .shutdown(Instant::now() + Duration::from_millis(500))
        .await;
    assert_eq!(report.survivors, [name("lamp")]);
    drop(release);
    home.close().await;
}
