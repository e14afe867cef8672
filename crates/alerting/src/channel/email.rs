use std::time::Duration;

use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message as Mail, Tokio1Executor,
    message::{
        Attachment, Mailbox, MultiPart, SinglePart,
        header::{ContentType, HeaderName, HeaderValue},
    },
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, Tls, TlsParameters},
    },
};

use super::{ChannelError, SendError, secret};
use crate::{
    config::{EmailConfig, SmtpTls},
    message::Message,
    templates::Rendered,
};

pub(super) struct Email {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    timeout: Duration,
}

/// A large mail may take longer than its server may take to answer.
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;

impl std::fmt::Debug for Email {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Email").field("from", &self.from).finish_non_exhaustive()
    }
}

impl Email {
    pub(super) fn new(config: &EmailConfig) -> Result<Self, ChannelError> {
        let address = |why: String| ChannelError::Address { channel: config.name.clone(), why };
        let (host, port) =
            config.server.rsplit_once(':').ok_or_else(|| address("server must be HOST:PORT".to_owned()))?;
        let port = port.parse().map_err(|_| address("server must be HOST:PORT".to_owned()))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let tls = match config.tls {
            SmtpTls::None => Tls::None,
            SmtpTls::Starttls => Tls::Required(tls(config, host)?),
            SmtpTls::Tls => Tls::Wrapper(tls(config, host)?),
        };
        let timeout = Duration::from_secs(config.timeout_seconds);
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
            .port(port)
            .tls(tls)
            .timeout(Some(timeout));
        if let (Some(username), Some(file)) = (&config.username, &config.password_file) {
            let password = secret(&config.name, file, "password")?;
            transport = transport.credentials(Credentials::new(username.clone(), password));
        }
        let from = config.from.parse().map_err(|_| address(format!("{:?} is no address", config.from)))?;
        Ok(Self { transport: transport.build(), from, timeout })
    }

    pub(super) async fn send(&self, message: &Message, rendered: &Rendered) -> Result<(), SendError> {
        let mail = self.mail(message, rendered)?;
        // The transport's own limit is for connecting alone.
        let list_bytes = message.many.as_ref().and_then(|many| many.list.as_ref()).map_or(0, Vec::len);
        let patience = self.timeout + Duration::from_secs(list_bytes as u64 / BYTES_PER_SECOND_MIN);
        match tokio::time::timeout(patience, self.transport.send(mail)).await {
            Ok(sent) => sent.map(|_| ()).map_err(SendError::Smtp),
            Err(_) => Err(SendError::SmtpSilence(patience)),
        }
    }

    /// The same message id in every repetition, so that whoever gets two can tell.
    fn mail(&self, message: &Message, rendered: &Rendered) -> Result<Mail, SendError> {
        let wrong = |error: &dyn std::fmt::Display| SendError::Mail(error.to_string());
        let to: Mailbox = message.recipient.parse().map_err(|e: lettre::address::AddressError| wrong(&e))?;
        let domain = self.from.email.domain();
        let name = |text: &str| {
            text.chars().filter(|c| c.is_ascii_alphanumeric() || "-.".contains(*c)).collect::<String>()
        };
        let mut mail = Mail::builder()
            .from(self.from.clone())
            .to(to)
            .subject(&rendered.subject)
            .message_id(Some(format!("<{}.dunlin@{domain}>", name(&message.key))))
            // Nobody's absence note is wanted.
            .raw_header(HeaderValue::new(
                HeaderName::new_from_ascii_str("Auto-Submitted"),
                "auto-generated".to_owned(),
            ));
        if let Some(facts) = &message.alert {
            // What is told of one alert is one conversation.
            mail = mail.references(format!("<{}.alert.dunlin@{domain}>", name(&facts.alert)));
        }
        let text = SinglePart::plain(rendered.text.clone());
        let list = message.many.as_ref().and_then(|many| many.list.clone());
        let mail = match list {
            None => mail.singlepart(text),
            Some(list) => {
                let gzip = ContentType::parse("application/gzip").map_err(|e| wrong(&e))?;
                let attached = Attachment::new("alerts.csv.gz".to_owned()).body(list, gzip);
                mail.multipart(MultiPart::mixed().singlepart(text).singlepart(attached))
            }
        };
        mail.map_err(|e| wrong(&e))
    }
}

fn tls(config: &EmailConfig, host: &str) -> Result<TlsParameters, ChannelError> {
    let channel = || config.name.clone();
    let failed = |source| ChannelError::Tls { channel: channel(), source };
    let mut tls = TlsParameters::builder(host.to_owned());
    if let Some(path) = &config.ca_file {
        let pem = std::fs::read(path).map_err(|source| ChannelError::File {
            channel: channel(),
            path: path.clone(),
            source,
        })?;
        tls = tls.add_root_certificate(Certificate::from_pem(&pem).map_err(failed)?);
    }
    tls.build_rustls().map_err(failed)
}
