use dunlin_model::{TenantId, Timestamp};
use dunlin_registry::{RegistryError, RuleMark, RuleMeasure};

use crate::Lab;

pub(crate) async fn a_rule_has_versions_and_one_in_force(lab: &Lab) {
    let registry = lab.open().await;
    let (a, b): (TenantId, TenantId) = ("a".parse().unwrap(), "b".parse().unwrap());
    registry.add_tenant(&a).await.unwrap();
    registry.add_tenant(&b).await.unwrap();
    assert_eq!(registry.put_rule(&a, "hot", "one", true).await.unwrap(), 1);
    assert_eq!(registry.put_rule(&a, "hot", "one", true).await.unwrap(), 1, "nothing new");
    assert_eq!(registry.put_rule(&a, "hot", "two", true).await.unwrap(), 2);
    assert_eq!(registry.put_rule(&b, "hot", "other", true).await.unwrap(), 1);
    let in_force = async || -> Vec<_> {
        let rules = registry.enabled_rules().await.unwrap();
        rules.into_iter().map(|rule| (rule.tenant.to_string(), rule.version, rule.text)).collect()
    };
    let two = ("a".to_owned(), 2, "two".to_owned());
    let other = ("b".to_owned(), 1, "other".to_owned());
    assert_eq!(in_force().await, [two, other.clone()]);

    registry.set_rule_version(&a, "hot", 1).await.unwrap();
    assert_eq!(registry.rule(&a, "hot").await.unwrap().unwrap().text, "one");
    assert!(matches!(registry.set_rule_version(&a, "hot", 3).await, Err(RegistryError::NotFound { .. })));
    registry.set_rule_enabled(&a, "hot", false).await.unwrap();
    assert_eq!(in_force().await, [other]);
    assert_eq!(registry.rules(&a).await.unwrap().len(), 1);
    registry.delete_rule(&a, "hot").await.unwrap();
    assert!(registry.rule(&a, "hot").await.unwrap().is_none());
    assert!(matches!(registry.delete_rule(&a, "hot").await, Err(RegistryError::NotFound { .. })));
    let versions: Vec<_> =
        registry.rule_versions(&a, "hot").await.unwrap().into_iter().map(|v| v.version).collect();
    assert_eq!(versions, [2, 1]);
    assert_eq!(registry.put_rule(&a, "hot", "three", true).await.unwrap(), 3);
}

pub(crate) async fn a_rule_carries_what_people_say_and_what_was_measured(lab: &Lab) {
    let registry = lab.open().await;
    let tenant = TenantId::default_tenant();
    let at = Timestamp::from_micros;
    let mark = |is_false| RuleMark { device: "d".into(), from: at(1), to: at(2), is_false };
    registry.mark_rule(&tenant, "hot", &mark(true)).await.unwrap();
    registry.mark_rule(&tenant, "hot", &mark(false)).await.unwrap();
    assert_eq!(registry.rule_marks(&tenant, "hot").await.unwrap(), [mark(false)]);
    let measure = RuleMeasure {
        version: 2,
        from: at(0),
        to: at(9),
        fired: 10,
        right_count: 3,
        false_count: 1,
        measured_at: at(1_700_000_000_000_000),
    };
    registry.set_rule_measure(&tenant, "hot", &RuleMeasure { fired: 3, ..measure }).await.unwrap();
    registry.set_rule_measure(&tenant, "hot", &measure).await.unwrap();
    assert_eq!(registry.rule_measures(&tenant).await.unwrap(), [("hot".to_owned(), measure)]);
    assert_eq!(
        (measure.precision(), RuleMeasure { right_count: 0, false_count: 0, ..measure }.precision()),
        (Some(0.75), None)
    );
}
