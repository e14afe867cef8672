use dunlin_gateway::{NotCertified, TlsError};

use super::*;

/// What CONNACK says to a client without a token, or `None` if the handshake does not get as far.
async fn answer(
    lab: &Lab,
    place: usize,
    trusts: &Authority,
    shows: Option<&Identity>,
    token: &str,
) -> Option<u8> {
    Some(connack_code(&enter(lab, place, trusts, shows, token).await?.1))
}

async fn enter(
    lab: &Lab,
    place: usize,
    trusts: &Authority,
    shows: Option<&Identity>,
    token: &str,
) -> Option<(Client, Vec<u8>)> {
    let pipe = tls(lab.socket(place).await, trusts, shows).await.ok()?;
    let mut client = Client::over(pipe);
    client.try_send(&connect(5, "c", token)).await;
    let answer = client.packet().await?;
    Some((client, answer))
}

const BAD_CREDENTIALS: Option<u8> = Some(0x86);

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_the_device_that_it_names_if_there_is_one() {
    let authority = Authority::new("root");
    let stranger = Authority::new("stranger");
    let config = config(vec![asking(ClientCertificates::Required), asking(ClientCertificates::Optional)]);
    let lab = Lab::with_tls(config, authority.tls(&[(&authority, Some("acme"))]), real_clock()).await;
    let press = authority.signs_device("press-7");
    for place in [0, 1] {
        let (mut client, said) = enter(&lab, place, &authority, Some(&press), "").await.unwrap();
        assert_eq!(connack_code(&said), 0);
        client.send(&publish(5, 1, 7, "v1/telemetry", format!("{{\"t\":{place}}}").as_bytes())).await;
        assert_eq!(client.packet().await.unwrap()[..4], [0x40, 2, 0, 7]);
        for (name, code) in [("unknown", BAD_CREDENTIALS), ("off", BAD_CREDENTIALS), ("down", Some(0x88))] {
            let device = authority.signs_device(name);
            assert_eq!(answer(&lab, place, &authority, Some(&device), "press-7").await, code, "{name}");
        }
        let foreign = stranger.signs_device("press-7");
        assert_eq!(answer(&lab, place, &authority, Some(&foreign), "press-7").await, None);
    }
    assert_eq!(answer(&lab, 0, &authority, None, "press-7").await, None, "one is required");
    assert_eq!(answer(&lab, 1, &authority, None, "press-7").await, Some(0), "or there is a token");
    assert_eq!(lab.telemetry().await, ["default/press-7: t=I64(0)", "default/press-7: t=I64(1)"]);
    let accounts = lab.gateway.accounts().snapshot();
    assert_eq!(accounts["acme"].accepted, 2, "the tenant is the authority's");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_without_a_tenant_says_that_a_token_may_be_shown() {
    let authority = Authority::new("root");
    let config = config(vec![asking(ClientCertificates::Required)]);
    let lab = Lab::with_tls(config, authority.tls(&[(&authority, None)]), real_clock()).await;
    let any = authority.signs_device("any");
    assert_eq!(answer(&lab, 0, &authority, Some(&any), "press-7").await, Some(0));
    assert_eq!(answer(&lab, 0, &authority, Some(&any), "unknown").await, BAD_CREDENTIALS);
    assert_eq!(answer(&lab, 0, &authority, Some(&any), "").await, BAD_CREDENTIALS);
}

/// Each authority speaks for its own tenant, whatever else a chain holds.
#[tokio::test(flavor = "multi_thread")]
async fn two_authorities_are_two_tenants() {
    let (root, acme, globex) = (Authority::new("root"), Authority::new("acme"), Authority::new("globex"));
    let config = config(vec![asking(ClientCertificates::Required)]);
    let clients = [(&acme, Some("acme")), (&globex, Some("globex"))];
    let lab = Lab::with_tls(config, root.tls(&clients), real_clock()).await;
    let of_acme = acme.signs_device("press-7");
    let of_globex = globex.signs_device("press-7").followed_by(&[&acme]);
    for (identity, n) in [(&of_acme, 1), (&of_globex, 2), (&of_globex, 3)] {
        let (mut client, said) = enter(&lab, 0, &root, Some(identity), "").await.unwrap();
        assert_eq!(connack_code(&said), 0);
        client.send(&publish(5, 1, 7, "v1/telemetry", format!("{{\"t\":{n}}}").as_bytes())).await;
        client.packet().await.unwrap();
    }
    let accounts = lab.gateway.accounts().snapshot();
    let accepted = |tenant: &str| accounts[tenant].accepted;
    assert_eq!((accepted("acme"), accepted("globex")), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_without_a_name_or_out_of_time_lets_nobody_in() {
    let authority = Authority::new("root");
    let config = config(vec![asking(ClientCertificates::Required)]);
    let lab = Lab::with_tls(config, authority.tls(&[(&authority, Some("acme"))]), real_clock()).await;
    let nameless = authority.signs_with(|_| {});
    assert_eq!(answer(&lab, 0, &authority, Some(&nameless), "press-7").await, None);
    let two = authority.signs_with(|params| {
        params.distinguished_name.push(rcgen::DnType::CommonName, "a");
        params.distinguished_name.push(rcgen::DnType::CustomDnType(vec![2, 5, 4, 3]), "b");
    });
    assert_eq!(answer(&lab, 0, &authority, Some(&two), "press-7").await, None);
    let wild = authority.signs_device("a/+/b");
    assert_eq!(answer(&lab, 0, &authority, Some(&wild), "").await, None);
    assert!(lab.has_refused("certificate", 3).await);
    let over = authority.signs_with(|params| {
        params.distinguished_name.push(rcgen::DnType::CommonName, "press-7");
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    assert_eq!(answer(&lab, 0, &authority, Some(&over), "").await, None);
}

/// A session that is resumed shows its certificate no more, and is judged by it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_stays_out_also_with_a_session_of_before() {
    let authority = Authority::new("root");
    authority.revokes(&[]);
    let config = config(vec![asking(ClientCertificates::Required)]);
    let lab = Lab::with_tls(config, authority.tls(&[(&authority, Some("acme"))]), real_clock()).await;
    let (good, bad) = (authority.signs_device("good"), authority.signs_device("bad"));
    let connectors =
        [&good, &bad].map(|shows| TlsConnector::from(Arc::new(authority.client_config(Some(shows)))));
    let come = async |connector: &TlsConnector| {
        let mut pipe = connector.connect("localhost".try_into().unwrap(), lab.socket(0).await).await.ok()?;
        pipe.write_all(&connect(5, "c", "")).await.ok()?;
        let mut said = [0; 4];
        pipe.read_exact(&mut said).await.ok()?;
        Some(pipe.get_ref().1.handshake_kind().unwrap())
    };
    use rustls::HandshakeKind::{Full, Resumed};
    for connector in &connectors {
        assert_eq!(come(connector).await, Some(Full));
        assert_eq!(come(connector).await, Some(Resumed));
    }
    authority.revokes(&[&bad]);
    lab.tls.as_ref().unwrap().renew();
    assert_eq!(come(&connectors[0]).await, Some(Full), "nothing of before counts");
    assert_eq!(come(&connectors[1]).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_while_clients_are_connected_and_a_bad_one_is_not() {
    let authority = Authority::new("root");
    let lab = Lab::with_tls(config(vec![door(Transport::Tcp, true)]), authority.tls(&[]), real_clock()).await;
    let shown = async || {
        let connector = TlsConnector::from(Arc::new(authority.client_config(None)));
        let pipe = connector.connect("localhost".try_into().unwrap(), lab.socket(0).await).await.unwrap();
        pipe.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let renew = || lab.tls.as_ref().unwrap().renew();
    let renewals = |outcome| lab.metric(&format!("dunlin_tls_renewals_total{{outcome=\"{outcome}\"}}"));
    let (mut client, _) = enter(&lab, 0, &authority, None, "press-7").await.unwrap();
    let first = shown().await;

    renew();
    assert_eq!((shown().await == first, renewals("taken")), (true, 0), "nothing has changed");
    let next = authority.signs_server();
    authority.writes("server.pem", &next.certificate);
    renew();
    renew();
    assert_eq!(shown().await, first, "the key is not there yet");
    assert_eq!((renewals("taken"), renewals("refused")), (0, 1));
    authority.serves(&next);
    renew();
    let second = shown().await;
    assert_ne!(second, first);
    assert_eq!((renewals("taken"), renewals("refused")), (1, 1));
    std::fs::remove_file(authority.file("server.pem")).unwrap();
    renew();
    assert_eq!(shown().await, second);
    assert!(client.pings().await, "who was connected stays");
}

#[test]
fn what_is_wrong_with_the_files_is_said_before_a_door_opens() {
    let authority = Authority::new("root");
    let said = |config| dunlin_gateway::Tls::load(config, real_clock()).unwrap_err().to_string();
    let good = authority.tls(&[(&authority, Some("acme"))]);
    authority.writes("empty.pem", "");
    let empty = authority.file("empty.pem");
    let path = empty.display();
    let with = |change: fn(&mut dunlin_gateway::TlsConfig, std::path::PathBuf)| {
        let mut config = good.clone();
        change(&mut config, empty.clone());
        said(config)
    };
    assert_eq!(with(|c, file| c.certificate = file), format!("tls: {path} holds no certificate in PEM"));
    assert_eq!(with(|c, file| c.key = file), format!("tls: {path} holds no private key in PEM"));
    assert_eq!(
        with(|c, file| c.client_ca[0].file = file),
        format!("tls: {path} holds no certificate in PEM")
    );
    assert_eq!(
        with(|c, file| c.client_ca[0].crl = Some(file)),
        format!("tls: {path} holds no revocation list in PEM")
    );
    assert!(
        with(|c, _| c.client_ca[0].tenant = Some("a/b".into())).ends_with("a tenant must not contain '/'")
    );
    authority.writes("other.key", &authority.signs_server().key);
    let mut other = good.clone();
    other.key = authority.file("other.key");
    let error = dunlin_gateway::Tls::load(other, real_clock()).unwrap_err();
    assert!(matches!(error, TlsError::WrongKey { .. }), "{error}");
}

#[test]
fn certificates_are_judged_by_the_platforms_clock() {
    let authority = Authority::new("root");
    let soon = authority.signs_with(|params| {
        params.distinguished_name.push(rcgen::DnType::CommonName, "press-7");
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    });
    let at = |seconds: i64| {
        let clock = Clock::new(move || Timestamp::from_millis(seconds * 1_000).unwrap());
        let tls = dunlin_gateway::Tls::load(authority.tls(&[(&authority, Some("acme"))]), clock).unwrap();
        tls.in_force().owner(&soon.chain())
    };
    let end_of_2029 = 1_893_456_000;
    assert!(at(end_of_2029 - 1).unwrap().is_some_and(|certified| &*certified.device == "press-7"));
    assert_eq!(at(end_of_2029 + 1), Err(NotCertified::Unknown));
}
