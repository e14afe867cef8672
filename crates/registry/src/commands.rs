use std::time::Duration;

use dunlin_model::{
    Command, CommandId, CommandReply, CommandState, CommandStep, DeviceId, TenantId, Timestamp,
};
use sqlx::AssertSqlSafe;

use crate::{
    Registry, RegistryError,
    database::{Transaction, sql},
    tokens::random_hex,
};

/// Commands of a device that it has not replied to and that have not expired.
pub const COMMANDS_OPEN_MAX: u64 = 100;

/// Rows deleted in one transaction.
const TRIM_STEP_ROWS: i64 = 1_000;

/// A command, and what the device did about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCommand {
    pub tenant: TenantId,
    pub id: CommandId,
    pub device: DeviceId,
    pub method: String,
    /// JSON.
    pub params: String,
    pub sent_at: Timestamp,
    pub expires_at: Timestamp,
    pub delivered_at: Option<Timestamp>,
    pub replied_at: Option<Timestamp>,
    /// JSON.
    pub reply: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCommand {
    pub device: DeviceId,
    pub method: String,
    /// JSON.
    pub params: String,
    pub lifetime: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum AddCommandError {
    #[error("device {0} has {COMMANDS_OPEN_MAX} commands that it has not replied to; wait until they expire")]
    TooMany(DeviceId),
    #[error("device {device} is a child of {parent}, and children get no commands")]
    Child { device: DeviceId, parent: String },
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl From<sqlx::Error> for AddCommandError {
    fn from(error: sqlx::Error) -> Self {
        Self::Registry(error.into())
    }
}

impl StoredCommand {
    pub fn state(&self, now: Timestamp) -> CommandState {
        CommandState::of(self.delivered_at.is_some(), self.replied_at.is_some(), now >= self.expires_at)
    }
}

/// As the journal carries it.
impl From<&StoredCommand> for Command {
    fn from(stored: &StoredCommand) -> Self {
        Self {
            tenant: stored.tenant.to_string(),
            device: stored.device.to_string(),
            id: stored.id.to_string(),
            method: stored.method.clone(),
            params: stored.params.clone(),
            sent_at: stored.sent_at,
            expires_at: stored.expires_at,
        }
    }
}

const COLUMNS: &str =
    "tenant, id, device, method, params, sent_at, expires_at, delivered_at, replied_at, reply";

#[derive(sqlx::FromRow)]
struct Row {
    tenant: String,
    id: String,
    device: String,
    method: String,
    params: String,
    sent_at: i64,
    expires_at: i64,
    delivered_at: Option<i64>,
    replied_at: Option<i64>,
    reply: Option<String>,
}

impl Registry {
    pub async fn add_command(
        &self,
        tenant: &TenantId,
        new: &NewCommand,
    ) -> Result<StoredCommand, AddCommandError> {
        let now = self.clock.now();
        let command = StoredCommand {
            tenant: tenant.clone(),
            id: random_id(now)?,
            device: new.device.clone(),
            method: new.method.clone(),
            params: new.params.clone(),
            sent_at: now,
            expires_at: now + new.lifetime,
            delivered_at: None,
            replied_at: None,
            reply: None,
        };
        let mut tx = self.database.begin().await?;
        // Of two who send the last one that there is room for, one does.
        tx.lock(&format!("commands of {tenant}/{}", new.device)).await?;
        expect_device(&mut tx, tenant, &new.device).await?;
        if commands_open(&mut tx, tenant, &new.device, now).await? >= COMMANDS_OPEN_MAX {
            return Err(AddCommandError::TooMany(new.device.clone()));
        }
        sql("INSERT INTO commands (tenant, id, device, method, params, sent_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)")
        .bind(tenant.as_str())
        .bind(&*command.id)
        .bind(command.device.as_str())
        .bind(&command.method)
        .bind(&command.params)
        .bind(command.sent_at.as_micros())
        .bind(command.expires_at.as_micros())
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(command)
    }

    /// Of a command that nobody was told of.
    pub async fn forget_command(&self, tenant: &TenantId, id: &CommandId) -> Result<(), RegistryError> {
        sql("DELETE FROM commands WHERE tenant = $1 AND id = $2")
            .bind(tenant.as_str())
            .bind(&**id)
            .execute(self.database.writer())
            .await?;
        Ok(())
    }

    /// Writes down what devices did, all of it or nothing; again, or in another order, it comes to the same. Of several
    /// replies to a command the first one written down stays. Returns how many name no command of their device.
    pub async fn record_replies(&self, replies: &[CommandReply]) -> Result<u64, RegistryError> {
        // Two who record the same take the rows in the same order, and so wait for each other and not both.
        let mut ordered: Vec<&CommandReply> = replies.iter().collect();
        ordered.sort_by_key(|reply| (&reply.tenant, &reply.id));
        let mut unknown = 0;
        let mut tx = self.database.begin().await?;
        for reply in ordered {
            if record(&mut tx, reply).await? == 0 {
                unknown += 1;
            }
        }
        tx.commit().await?;
        Ok(unknown)
    }

    pub async fn command(
        &self,
        tenant: &TenantId,
        id: &CommandId,
    ) -> Result<Option<StoredCommand>, RegistryError> {
        let row: Option<Row> =
            sql(AssertSqlSafe(format!("SELECT {COLUMNS} FROM commands WHERE tenant = $1 AND id = $2")))
                .bind(tenant.as_str())
                .bind(&**id)
                .fetch_optional(self.database.reader())
                .await?;
        row.map(command_of).transpose()
    }

    /// Commands of a device, the newest first: those before `before`.
    pub async fn commands(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        before: Option<&CommandId>,
        limit: u32,
    ) -> Result<Vec<StoredCommand>, RegistryError> {
        let rows: Vec<Row> = sql(AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM commands WHERE tenant = $1 AND device = $2 AND id < $3
             ORDER BY id DESC LIMIT $4"
        )))
        .bind(tenant.as_str())
        .bind(device.as_str())
        .bind(before.map_or(ID_END, |id| id))
        .bind(i64::from(limit))
        .fetch_all(self.database.reader())
        .await?;
        rows.into_iter().map(command_of).collect()
    }

    /// Forgets the commands that expired before `before`, in small transactions; returns how many.
    pub async fn trim_commands(&self, before: Timestamp) -> Result<u64, RegistryError> {
        let mut trimmed = 0;
        loop {
            let step = sql("DELETE FROM commands WHERE (tenant, id) IN (
                     SELECT tenant, id FROM commands WHERE expires_at < $1 LIMIT $2)")
            .bind(before.as_micros())
            .bind(TRIM_STEP_ROWS)
            .execute(self.database.writer())
            .await?;
            trimmed += step;
            if step < TRIM_STEP_ROWS as u64 {
                return Ok(trimmed);
            }
        }
    }
}

/// After every id, by its bytes.
const ID_END: &str = "~";

/// The time, so that ids are in the order of sending, and what nobody guesses.
fn random_id(now: Timestamp) -> Result<CommandId, RegistryError> {
    let id = format!("{:014x}{}", now.as_micros().max(0), random_hex::<8>()?);
    Ok(id.parse().expect("30 hex digits are an id"))
}

async fn expect_device(
    tx: &mut Transaction,
    tenant: &TenantId,
    device: &DeviceId,
) -> Result<(), AddCommandError> {
    let found: Option<(Option<String>,)> = sql("SELECT parent FROM devices WHERE tenant = $1 AND name = $2")
        .bind(tenant.as_str())
        .bind(device.as_str())
        .fetch_optional(tx)
        .await?;
    match found {
        Some((None,)) => Ok(()),
        Some((Some(parent),)) => Err(AddCommandError::Child { device: device.clone(), parent }),
        None => Err(RegistryError::NotFound { what: "device", name: device.to_string() }.into()),
    }
}

async fn commands_open(
    tx: &mut Transaction,
    tenant: &TenantId,
    device: &DeviceId,
    now: Timestamp,
) -> Result<u64, RegistryError> {
    let (open,): (i64,) = sql("SELECT COUNT(*) FROM commands
         WHERE tenant = $1 AND device = $2 AND replied_at IS NULL AND expires_at > $3")
    .bind(tenant.as_str())
    .bind(device.as_str())
    .bind(now.as_micros())
    .fetch_one(tx)
    .await?;
    Ok(open.unsigned_abs())
}

/// Returns how many commands it is about: one or none. A device that replies has the command.
async fn record(tx: &mut Transaction, reply: &CommandReply) -> Result<u64, RegistryError> {
    let of_command = match reply.step {
        CommandStep::Delivered => sql("UPDATE commands SET
                 delivered_at = CASE WHEN delivered_at < $4 THEN delivered_at ELSE $4 END
             WHERE tenant = $1 AND id = $2 AND device = $3"),
        CommandStep::Replied => sql("UPDATE commands SET
                 delivered_at = CASE WHEN delivered_at < $4 THEN delivered_at ELSE $4 END,
                 reply = CASE WHEN replied_at IS NULL THEN $5 ELSE reply END,
                 replied_at = COALESCE(replied_at, $4)
             WHERE tenant = $1 AND id = $2 AND device = $3"),
    };
    let of_command =
        of_command.bind(&reply.tenant).bind(&reply.id).bind(&reply.device).bind(reply.at.as_micros());
    let of_command = match reply.step {
        CommandStep::Delivered => of_command,
        CommandStep::Replied => of_command.bind(&reply.reply),
    };
    Ok(of_command.execute(tx).await?)
}

fn command_of(row: Row) -> Result<StoredCommand, RegistryError> {
    let damaged = |what, value: &str| RegistryError::Damaged { what, value: value.to_owned() };
    Ok(StoredCommand {
        tenant: row.tenant.parse().map_err(|_| damaged("tenant", &row.tenant))?,
        id: row.id.parse().map_err(|_| damaged("command", &row.id))?,
        device: row.device.parse().map_err(|_| damaged("device", &row.device))?,
        method: row.method,
        params: row.params,
        sent_at: Timestamp::from_micros(row.sent_at),
        expires_at: Timestamp::from_micros(row.expires_at),
        delivered_at: row.delivered_at.map(Timestamp::from_micros),
        replied_at: row.replied_at.map(Timestamp::from_micros),
        reply: row.reply,
    })
}
