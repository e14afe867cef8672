mod bounds; // of every number
mod journal; // which one
mod roles; // what this process does

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use dunlin_gateway::{ClientCertificates, Company, Tls, TlsConfig};
use dunlin_model::Clock;
use serde::{Deserialize, Serialize};

pub(crate) use journal::JournalChoice;
pub(crate) use roles::{Role, Roles};

use crate::{
    cli::{DATA_DEFAULT, HTTP_DEFAULT, MQTT_DEFAULT, ServeArgs},
    exit::Failure,
};

/// All settings. A file may say any of them; the command line wins over the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// What this process does: all, or some of `gateway`, `pipeline`, `store`, `alerting`, `fleet`, `console`.
    pub(crate) roles: Roles,
    /// Where everything is kept. Relative directories below are relative to it.
    pub(crate) data: PathBuf,
    /// Where devices connect by MQTT.
    pub(crate) mqtt: String,
    /// Where devices and people connect by HTTP.
    pub(crate) http: String,
    /// HTTP connections at the same time, and as many with TLS; more wait to be accepted.
    pub(crate) http_connections_max: usize,
    /// Where the same is to be had with TLS.
    pub(crate) https: Https,
    /// The certificate of all doors with TLS, and whose certificates they believe.
    pub(crate) tls: TlsConfig,
    /// Directory of rule files, `*.toml`.
    pub(crate) rules: PathBuf,
    pub(crate) gateway: dunlin_gateway::Config,
    /// Where records are durable: `kind` is `disk` or `kafka`, and the rest is that one's.
    pub(crate) journal: JournalChoice,
    /// Tenants, devices, credentials, rules and alerts: a file, or PostgreSQL.
    pub(crate) registry: dunlin_registry::Config,
    pub(crate) tsdb: dunlin_tsdb_parquet::Config,
    /// How copies of messages are recognised, by the store and by the rules.
    pub(crate) copies: dunlin_pipeline::RecentIdsLimits,
    /// How the journal gets into the store.
    pub(crate) store: dunlin_pipeline::StoreConfig,
    /// How the rules run.
    pub(crate) pipeline: dunlin_pipeline::Config,
    pub(crate) alerting: dunlin_alerting::Config,
    pub(crate) console: dunlin_console::Config,
}

/// The HTTP door with TLS.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Https {
    /// HOST:PORT; empty: there is none.
    pub(crate) address: String,
    /// Whether clients show a certificate that an authority of `[[tls.client_ca]]` has signed.
    pub(crate) client_certificates: ClientCertificates,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            roles: Roles::default(),
            data: DATA_DEFAULT.into(),
            mqtt: MQTT_DEFAULT.into(),
            http: HTTP_DEFAULT.into(),
            http_connections_max: 4_096,
            https: Https::default(),
            tls: TlsConfig::default(),
            rules: "rules".into(),
            gateway: Default::default(),
            journal: Default::default(),
            registry: Default::default(),
            tsdb: Default::default(),
            copies: Default::default(),
            store: Default::default(),
            pipeline: Default::default(),
            alerting: Default::default(),
            console: Default::default(),
        }
    }
}

impl Config {
    /// The file, if there is one, under what the command line says.
    pub(crate) fn load(args: &ServeArgs) -> Result<Self, Failure> {
        let mut config = match &args.config {
            Some(file) => Self::read(file)?,
            None => Self::default(),
        };
        config.data = args.data.clone().unwrap_or(config.data);
        config.mqtt = args.mqtt.clone().unwrap_or(config.mqtt);
        config.http = args.http.clone().unwrap_or(config.http);
        if !args.role.is_empty() {
            config.roles = Roles(args.role.clone());
        }
        config.check()?;
        Ok(config)
    }

    pub(crate) fn read(file: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| Failure::Invalid(format!("read {}: {error}", file.display())))?;
        toml::from_str(&text).map_err(|error| Failure::Invalid(format!("{}: {error}", file.display())))
    }

    /// Whether other processes may have gateways on the same journal.
    pub(crate) fn company(&self) -> Company {
        match &self.journal {
            JournalChoice::Kafka(kafka) if !self.roles.are_all() => Company::Others {
                name: kafka.member.clone(),
                silence_max: Duration::from_secs(kafka.session_seconds_max),
            },
            _ => Company::Alone,
        }
    }

    /// Everything the types do not say. No port is open and no file is touched before this has passed.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let invalid = |error: &dyn std::error::Error| Failure::Invalid(dunlin_model::chain(error));
        self.gateway.check().map_err(|e| invalid(&e))?;
        match &self.journal {
            JournalChoice::Disk(config) => config.check().map_err(|e| invalid(&e))?,
            JournalChoice::Kafka(config) => config.check().map_err(|e| invalid(&e))?,
        }
        self.registry.check().map_err(|e| invalid(&e))?;
        self.alerting.check().map_err(|e| invalid(&e))?;
        let is_shared = matches!(self.journal, JournalChoice::Kafka(_));
        self.roles.check(is_shared).map_err(Failure::Invalid)?;
        if self.roles.has(Role::Console) && !self.roles.has(Role::Store) {
            dunlin_console::Elsewhere::new(&self.console).map_err(|e| invalid(&e))?;
        }
        bounds::check(self)?;
        for (name, address) in
            [("mqtt", &self.mqtt), ("http", &self.http), ("https.address", &self.https.address)]
        {
            if name == "https.address" && address.is_empty() {
                continue;
            }
            if address.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
                return Err(Failure::Invalid(format!("{name} must be HOST:PORT, not {address:?}")));
            }
        }
        Ok(())
    }

    /// The configuration with its directories where they are in the file system, and what parts share in each.
    pub(crate) fn located(mut self) -> Self {
        self.rules = self.data.join(self.rules);
        self.journal = self.journal.located(&self.data);
        self.registry = self.registry.located(&self.data);
        if let JournalChoice::Kafka(config) = &mut self.journal
            && !self.roles.are_all()
        {
            config.follows = self.roles.topics();
        }
        self.tsdb.dir = self.data.join(self.tsdb.dir);
        if !self.tls.certificate.as_os_str().is_empty() {
            self.tls.certificate = self.data.join(self.tls.certificate);
            self.tls.key = self.data.join(self.tls.key);
        }
        for ca in &mut self.tls.client_ca {
            ca.file = self.data.join(&ca.file);
            ca.crl = ca.crl.take().map(|crl| self.data.join(crl));
        }
        for source in &mut self.gateway.source {
            let tls = &mut source.tls;
            for file in
                [&mut source.password_file, &mut tls.ca_file, &mut tls.certificate_file, &mut tls.key_file]
            {
                *file = file.take().map(|file| self.data.join(file));
            }
        }
        (self.store.copies, self.pipeline.limits.copies) = (self.copies, self.copies);
        // Good where the server is; elsewhere people say where it is to be reached.
        self.alerting.public_url.get_or_insert_with(|| format!("http://{}", self.http));
        self
    }

    /// The certificates, if any door needs them. Of a configuration whose files are located.
    pub(crate) fn load_tls(&self, clock: Clock) -> Result<Option<Tls>, Failure> {
        let is_needed = !self.https.address.is_empty() || self.gateway.listener.iter().any(|door| door.tls);
        if !is_needed && self.tls == TlsConfig::default() {
            return Ok(None);
        }
        if self.tls.certificate.as_os_str().is_empty() {
            return Err(Failure::Invalid("a door with TLS needs tls.certificate and tls.key".into()));
        }
        let tls = Tls::load(self.tls.clone(), clock);
        tls.map(Some).map_err(|error| Failure::Invalid(dunlin_model::chain(&error)))
    }

    pub(crate) fn to_toml(&self) -> Result<String, Failure> {
        toml::to_string_pretty(self).map_err(|error| Failure::Failed(dunlin_model::chain(&error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_print_config_prints_is_read_back_the_same() {
        let printed = Config::default().to_toml().unwrap();
        let read: Config = toml::from_str(&printed).unwrap();
        assert_eq!(read.to_toml().unwrap(), printed);
    }

    #[test]
    fn the_journal_is_on_disk_unless_it_is_said() {
        let read = |text: &str| toml::from_str::<Config>(text);
        let disk = read("[journal]\nsegment_bytes = 1048576\n").unwrap().journal;
        assert!(matches!(disk, JournalChoice::Disk(config) if config.segment_bytes == 1 << 20));
        let kafka = read("[journal]\nkind = \"kafka\"\nbrokers = \"a:1,b:2\"\n").unwrap();
        assert!(matches!(&kafka.journal, JournalChoice::Kafka(config) if config.brokers == "a:1,b:2"));
        let printed = kafka.to_toml().unwrap();
        assert_eq!(read(&printed).unwrap().to_toml().unwrap(), printed);

        let said = |text: &str| read(text).unwrap_err().to_string();
        assert!(said("[journal]\nkind = \"tape\"\n").contains("disk or kafka"));
        // What belongs to the other.
        let error = said("[journal]\nkind = \"kafka\"\nsegment_bytes = 1048576\n");
        assert!(error.contains("segment_bytes"), "{error}");
        let config = read("[journal]\nkind = \"kafka\"\nmin_insync_replicas = 4\n").unwrap();
        let error = config.check().unwrap_err().to_string();
        assert_eq!(error, "journal.min_insync_replicas must be from 1 to 3, not 4");
    }

    #[test]
    fn an_unknown_setting_is_named() {
        let error = toml::from_str::<Config>("[gateway]\nworkerz = 3\n").unwrap_err().to_string();
        assert!(error.contains("workerz") && error.contains("workers"), "{error}");
    }

    #[test]
    fn the_defaults_pass_and_numbers_without_sense_are_named_in_every_section() {
        Config::default().check().unwrap();
        // TOML's own numbers end here.
        let huge = i64::MAX;
        for (section, field, value) in [
            ("gateway.time", "future_tolerance_seconds", huge),
            ("gateway", "connections_max", huge),
            ("journal", "retention_seconds", huge),
            ("registry", "connections_max", 0),
            ("registry", "answer_millis_max", huge),
            ("tsdb", "flush_after_seconds", huge),
            ("tsdb", "flush_after_seconds", 0),
            ("tsdb", "retention_seconds", huge),
            ("tsdb", "queries_max", huge),
            ("tsdb", "query_threads", 0),
            ("store", "commit_seconds", huge),
            ("store", "write_records_max", 0),
            ("store", "nice", 20),
            ("pipeline", "checkpoint_seconds", huge),
            ("pipeline", "nice", -1),
            ("pipeline.limits", "lateness_millis", huge),
            ("pipeline.limits", "device_ttl_seconds", huge),
            ("alerting.retry", "pause_longest_ms", huge),
            ("console", "sql_timeout_seconds", huge),
            ("console", "request_body_seconds_max", 0),
        ] {
            let config: Config = toml::from_str(&format!("[{section}]\n{field} = {value}\n")).unwrap();
            let said = config.check().unwrap_err().to_string();
            assert!(said.starts_with(&format!("{section}.{field} must be ")), "{said}");
        }
        let channel = "[[alerting.channel]]\nkind = \"webhook\"\nname = \"a\"\nurl = \"http://a\"\n";
        let config: Config = toml::from_str(&format!("{channel}timeout_seconds = {huge}\n")).unwrap();
        assert!(config.check().unwrap_err().to_string().contains("\"a\": timeout_seconds must be"));
    }

    #[test]
    fn relative_directories_are_below_data_and_absolute_ones_stay() {
        let mut config = Config { data: "/var/lib/dunlin".into(), ..Config::default() };
        config.tsdb.dir = "/mnt/big".into();
        let config = config.located();
        assert_eq!(config.rules, Path::new("/var/lib/dunlin/rules"));
        assert_eq!(config.tsdb.dir, Path::new("/mnt/big"));
    }
}
