use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Paragraph, Row, Sparkline, Table},
};
use serde_json::Value;

use super::{
    super::show::rejected,
    figures::{Figures, total},
};

pub(super) fn draw(frame: &mut Frame<'_>, figures: &Figures) {
    let [head, rates, tables, alerts, foot] = Layout::vertical([
        Constraint::Length(4),
        Constraint::Length(6),
        Constraint::Min(8),
        Constraint::Length(10),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_head(frame, head, figures);
    let history: Vec<u64> = figures.rates.iter().copied().collect();
    let title = format!(" accepted {}/s ", count(figures.accepted_per_second));
    frame.render_widget(
        Sparkline::default().block(Block::bordered().title(title)).data(&history).style(Color::Cyan),
        rates,
    );
    let [ledger, lag] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(tables);
    draw_ledger(frame, ledger, &figures.last.ledger);
    draw_lag(frame, lag, &figures.last.status);
    draw_alerts(frame, alerts, &figures.last.alerts);
    let foot_line = match &figures.lost {
        Some(why) => Line::styled(format!(" {why}"), Color::Red),
        None => Line::styled(" q quit", Modifier::DIM),
    };
    frame.render_widget(foot_line, foot);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, figures: &Figures) {
    let status = &figures.last.status;
    let ms = |seconds: Option<f64>| seconds.map_or("-".to_owned(), |s| format!("{:.1} ms", s * 1e3));
    let line = |pairs: &[(&str, String)]| {
        let spans = pairs.iter().flat_map(|(name, value)| {
            [Span::styled(format!(" {name} "), Modifier::DIM), Span::raw(format!("{value:<14}"))]
        });
        Line::from(spans.collect::<Vec<_>>())
    };
    let lines = vec![
        line(&[
            ("connections", status["connections"].as_f64().map_or("-".to_owned(), count)),
            ("ack p50", ms(figures.ack_p50_seconds)),
            ("p99", ms(figures.ack_p99_seconds)),
            ("stored/s", count(figures.stored_per_second)),
        ]),
        line(&[
            ("firing", status["alerts_firing"].to_string()),
            ("in flight", count(total(&figures.last.ledger, "in_flight"))),
            ("up", format!("{} s", status["uptime_seconds"])),
        ]),
    ];
    let title = format!(" dunlin {} ", status["version"].as_str().unwrap_or("?"));
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), area);
}

fn draw_ledger(frame: &mut Frame<'_>, area: Rect, ledger: &Value) {
    let rows = ledger["tenants"].as_object().into_iter().flatten().map(|(tenant, account)| {
        let of = |field: &str| count(account[field].as_f64().unwrap_or(0.0));
        Row::new([
            tenant.clone(),
            of("accepted"),
            of("stored"),
            of("duplicate"),
            of("expired"),
            of("sampled"),
            count(rejected(account) as f64),
        ])
    });
    let balanced = ledger["balanced"].as_bool() == Some(true);
    let (title, style) = match balanced {
        true => (" ledger: balanced ", Style::new()),
        false => (" ledger: NOT BALANCED ", Style::new().fg(Color::Red)),
    };
    let widths = [
        Constraint::Fill(2),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Fill(1),
    ];
    let header = Row::new(["tenant", "accepted", "stored", "duplicate", "expired", "sampled", "rejected"])
        .style(Modifier::DIM);
    frame.render_widget(
        Table::new(rows, widths).header(header).block(Block::bordered().title(title).border_style(style)),
        area,
    );
}

fn draw_lag(frame: &mut Frame<'_>, area: Rect, status: &Value) {
    let rows = status["stages"].as_array().into_iter().flatten().map(|stage| {
        Row::new([
            stage["stage"].as_str().unwrap_or("?").to_owned(),
            count(stage["lag"].as_f64().unwrap_or(0.0)),
        ])
    });
    let header = Row::new(["stage", "records behind"]).style(Modifier::DIM);
    let widths = [Constraint::Fill(1), Constraint::Fill(1)];
    frame
        .render_widget(Table::new(rows, widths).header(header).block(Block::bordered().title(" lag ")), area);
}

fn draw_alerts(frame: &mut Frame<'_>, area: Rect, alerts: &Value) {
    let rows = alerts["alerts"].as_array().into_iter().flatten().map(|alert| {
        let field = |name: &str| alert[name].as_str().unwrap_or("-").to_owned();
        let style = match alert["state"].as_str() {
            Some("firing") => Style::new().fg(Color::Red),
            Some("pending") => Style::new().fg(Color::Yellow),
            _ => Style::new().add_modifier(Modifier::DIM),
        };
        Row::new([field("state"), field("device"), field("rule"), field("since")]).style(style)
    });
    let widths = [Constraint::Length(10), Constraint::Fill(1), Constraint::Fill(1), Constraint::Length(24)];
    frame.render_widget(Table::new(rows, widths).block(Block::bordered().title(" alerts ")), area);
}

/// 12,345 as people read it.
fn count(n: f64) -> String {
    let digits = format!("{:.0}", n.max(0.0));
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
