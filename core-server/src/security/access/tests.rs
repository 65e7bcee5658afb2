//! Tokens, invitations and certificates, over restarts.

use super::*;
use crate::security::credentials::Worth;

fn lamp() -> PluginName {
    PluginName::parse("lamp").expect("good name")
}

struct Home {
    directory: tempfile::TempDir,
    credentials: Credentials,
    access: Access,
}

impl Home {
    fn new() -> Self {
        Self::at(tempfile::tempdir().expect("a directory"))
    }

    fn at(directory: tempfile::TempDir) -> Self {
        let credentials = Credentials::default();
        let (authority, _) = Authority::open_or_make(directory.path()).expect("an authority");
        let tls = Tls {
            authority,
            addresses: vec!["core.lan:7443".to_owned()],
            certificate_life: Duration::from_secs(24 * 3_600),
        };
        let access = Access::open(directory.path(), credentials.clone(), Some(tls));
        Self {
            access: access.expect("readable"),
            credentials,
            directory,
        }
    }

    /// As after a restart of the core.
    fn restarted(self) -> Self {
        Self::at(self.directory)
    }

    fn is_good(&self, token: &Token) -> bool {
        let worth = self.credentials.token(token.reveal(), SystemTime::now());
        matches!(worth, Some(Worth::Good(_)))
    }

    fn join(&self) -> Identity {
        let (_, join) = self
            .access
            .invite(&lamp(), INVITATION_LIFE, Promised::default())
            .expect("invited");
        let key = core_tls::NewKey::generate().expect("made");
        self.access
            .join(&join.id, &join.secret, &key.csr_der, None)
            .expect("joined")
            .0
    }

    /// What the gate makes of a certificate.
    fn credential(&self, identity: &Identity) -> Credential {
        use rustls::pki_types::pem::PemObject as _;
        let pem = identity.certificate_pem.as_bytes();
        let der = rustls::pki_types::CertificateDer::from_pem_slice(pem).expect("PEM");
        let digest = core_tls::Pin::of(&der);
        let worth = (self.credentials).certificate(digest.as_bytes(), SystemTime::now());
        match worth {
            Some(Worth::Good(Holder::Plugin(credential))) => credential,
            other => panic!("not good: {other:?}"),
        }
    }

    fn file(&self) -> String {
        let path = self.directory.path().join("credentials.json");
        std::fs::read_to_string(path).expect("there")
    }
}

#[test]
fn a_token_outlives_a_restart_and_its_secret_is_nowhere() {
    let home = Home::new();
    let (record, token) = home
        .access
        .create_token(Some(&lamp()), "shed", None)
        .expect("made");
    assert!(!home.file().contains(token.reveal()));
    let home = home.restarted();
    assert!(home.is_good(&token));
    assert_eq!(home.access.plugins(), BTreeSet::from([lamp()]));
    let ids = Which::Ids(vec![record.id.clone()]);
    assert_eq!(home.access.revoke(&ids).expect("revoked"), 1);
    assert!(!home.is_good(&token));
    assert!(matches!(
        home.access.revoke(&ids),
        Err(Error::Unknown { .. })
    ));
    let home = home.restarted();
    assert!(!home.is_good(&token) && home.access.plugins().is_empty());
}

#[test]
fn an_operators_token_is_no_plugins() {
    let home = Home::new();
    let (_, token) = home
        .access
        .create_token(None, "laptop", None)
        .expect("made");
    let worth = home.credentials.token(token.reveal(), SystemTime::now());
    assert!(matches!(worth, Some(Worth::Good(Holder::Operator(_)))));
    assert!(home.access.plugins().is_empty());
}

#[test]
fn an_invitation_becomes_a_certificate_once_and_its_secret_is_nowhere() {
    let home = Home::new();
    let promised = Promised {
        permissions: vec!["publish=home.>".parse().expect("good")],
        by: "uid 7".to_owned(),
    };
    let (record, join) = home
        .access
        .invite(&lamp(), INVITATION_LIFE, promised.clone())
        .expect("invited");
    assert_eq!(home.access.list(Some(&lamp())), [record]);
    let key = core_tls::NewKey::generate().expect("made");
    let use_it = || home.access.join(&join.id, &join.secret, &key.csr_der, None);
    let (identity, kept) = use_it().expect("joined");
    assert_eq!(kept, promised, "handed over with the certificate");
    assert!(matches!(use_it(), Err(Error::BadInvitation)));
    assert_eq!(identity.plugin, lamp());
    let life = identity.expires_at.duration_since(identity.renew_at);
    assert_eq!(life.expect("later"), Duration::from_secs(8 * 3_600));
    assert!(!home.file().contains(&join.secret));
    let kinds: Vec<_> = home.access.list(None).iter().map(|r| r.kind).collect();
    assert_eq!(kinds, [Kind::Certificate]);
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_renews_for_ever_has_eight_certificates_and_keeps_what_it_opened() {
    let home = Home::new();
    let mut shown = home.credential(&home.join());
    let opened = shown.revoked.clone();
    let key = core_tls::NewKey::generate().expect("made");
    for _ in 0..12 {
        let renewed = home.access.renew(&shown, &key.csr_der).expect("renewed");
        let again = home.access.renew(&shown, &key.csr_der);
        assert!(matches!(again, Err(Error::TooSoon)));
        tokio::time::advance(RENEWALS_APART).await;
        shown = home.credential(&renewed);
    }
    assert_eq!(home.access.list(None).len(), MAX_CERTIFICATES);
    assert!(!opened.is_cancelled());
    let one = home.access.list(None)[0].id.clone();
    home.access.revoke(&Which::Ids(vec![one])).expect("revoked");
    assert!(opened.is_cancelled());
    let ended = home.access.revoke(&Which::OfPlugin(lamp()));
    assert_eq!(ended.expect("revoked"), MAX_CERTIFICATES - 1);
}

#[test]
fn a_renewal_that_was_admitted_before_a_revocation_gives_nothing_after_it() {
    let home = Home::new();
    let admitted = home.credential(&home.join());
    let key = core_tls::NewKey::generate().expect("made");
    home.access
        .revoke(&Which::OfPlugin(lamp()))
        .expect("revoked");
    let renewed = home.access.renew(&admitted, &key.csr_der);
    assert!(matches!(renewed, Err(Error::Revoked)));
    assert!(home.access.list(None).is_empty());
}

#[test]
fn what_cannot_be_written_is_not_handed_out_and_what_is_revoked_is_so_all_the_same() {
    let home = Home::new();
    let (record, token) = home.access.create_token(None, "", None).expect("made");
    // Its place beside is taken: nothing can be written any more.
    let beside = home.directory.path().join("credentials.json.new");
    std::fs::create_dir(beside).expect("made");
    let refused = home.access.create_token(None, "", None);
    assert!(matches!(refused, Err(Error::NotMade(_))));
    let revoked = home.access.revoke(&Which::Ids(vec![record.id]));
    assert!(matches!(revoked, Err(Error::NotKept(_))));
    assert!(!home.is_good(&token), "at once");
}

#[test]
fn an_expired_certificate_is_kept_for_thirty_days() {
    let expired = |days: u64| {
        let mut content = Content::default();
        content.credentials.push(Record {
            id: "a".to_owned(),
            kind: Kind::Certificate,
            plugin: Some("lamp".to_owned()),
            label: String::new(),
            digest: "ab".repeat(32),
            created_at: 0,
            expires_at: Some(2_000_000_000 - days * 86_400),
            clock_was_behind: false,
        });
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        (
            tidy(&mut content, now, false).len(),
            tidy(&mut content, now, true).len(),
        )
    };
    assert_eq!(expired(29), (0, 0));
    assert_eq!(expired(31), (1, 0));
}

#[test]
fn a_clock_that_is_behind_is_noticed() {
    let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    let known = 1_900_000_000;
    assert!(is_behind(at(known - 1), known) && !is_behind(at(known), known));
    assert!(is_behind(at(5), 0), "nobody lives in 1970");
    let mut record = Record {
        id: "a".to_owned(),
        kind: Kind::Certificate,
        plugin: None,
        label: String::new(),
        digest: String::new(),
        created_at: 0,
        expires_at: Some(9),
        clock_was_behind: false,
    };
    assert_eq!(record.judged_expiry(), Some(at(9)));
    record.clock_was_behind = true;
    assert_eq!(record.judged_expiry(), None);
}
