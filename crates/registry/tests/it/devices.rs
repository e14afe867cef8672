use dunlin_model::{DeviceId, DeviceType, TenantId};
use dunlin_registry::{NewDevice, NoChild, RegistryError};

use crate::Lab;

pub(crate) fn named(name: &str, is_gateway: bool) -> NewDevice {
    NewDevice { name: name.parse().unwrap(), device_type: DeviceType::default_type(), is_gateway }
}

pub(crate) async fn a_device_is_known_by_its_tokens_and_across_a_reopen(lab: &Lab) {
    let tenant = TenantId::default_tenant();
    let first = {
        let registry = lab.open().await;
        registry.add_tenant(&tenant).await.unwrap();
        let token = registry.add_device(&tenant, &named("pump-1", false)).await.unwrap();
        registry.close().await;
        token
    };
    let registry = lab.open().await;
    let device = registry.device_by_token(first.reveal()).await.unwrap().unwrap();
    assert_eq!((device.name.as_str(), device.tenant.as_str()), ("pump-1", "default"));
    assert!(registry.device_by_token("dnd_0").await.unwrap().is_none());

    let second = registry.add_device_token(&tenant, &device.name, true).await.unwrap();
    assert!(registry.device_by_token(first.reveal()).await.unwrap().is_none(), "revoked");
    assert!(registry.device_by_token(second.reveal()).await.unwrap().unwrap().enabled);

    registry.set_device_enabled(&tenant, &device.name, false).await.unwrap();
    assert!(!registry.device_by_token(second.reveal()).await.unwrap().unwrap().enabled);
    let nobody = registry.set_device_enabled(&tenant, &"nobody".parse().unwrap(), false).await;
    assert!(matches!(nobody, Err(RegistryError::NotFound { .. })));
}

pub(crate) async fn names_are_unique_within_a_tenant_only(lab: &Lab) {
    let registry = lab.open().await;
    let (a, b): (TenantId, TenantId) = ("a".parse().unwrap(), "b".parse().unwrap());
    registry.add_tenant(&a).await.unwrap();
    registry.add_tenant(&b).await.unwrap();
    registry.add_device(&a, &named("x", false)).await.unwrap();
    registry.add_device(&b, &named("x", false)).await.unwrap();
    let again = registry.add_device(&a, &named("x", false)).await.unwrap_err();
    assert_eq!(again.to_string(), r#"device "x" exists already"#);
    assert!(matches!(registry.add_tenant(&a).await, Err(RegistryError::Exists { .. })));
    assert_eq!(registry.devices(&a, None, 10).await.unwrap().len(), 1);
    assert!(registry.devices(&a, Some("x"), 10).await.unwrap().is_empty());
}

pub(crate) async fn a_gateway_speaks_for_its_own_children_only(lab: &Lab) {
    let registry = lab.open().await;
    let tenant = TenantId::default_tenant();
    registry.add_tenant(&tenant).await.unwrap();
    registry.add_device(&tenant, &named("gw-1", true)).await.unwrap();
    registry.add_device(&tenant, &named("stranger", false)).await.unwrap();
    let gateway = registry.device(&tenant, &"gw-1".parse().unwrap()).await.unwrap().unwrap();

    let names = ["meter-1", "stranger"].map(|name| name.parse().unwrap());
    let found = registry.children_of(&gateway, &names, 10).await.unwrap();
    let child = found[0].clone().unwrap();
    assert_eq!((child.name.as_str(), child.parent.as_deref()), ("meter-1", Some("gw-1")));
    assert_eq!(found[1], Err(NoChild::NotOfThisParent));
    assert_eq!(registry.children_of(&gateway, &names, 10).await.unwrap(), found, "and made once");
}

pub(crate) async fn a_gateway_has_so_many_children_and_no_more(lab: &Lab) {
    let registry = lab.open().await;
    let tenant = TenantId::default_tenant();
    registry.add_tenant(&tenant).await.unwrap();
    let mut parents = Vec::new();
    for name in ["gw-1", "gw-2"] {
        registry.add_device(&tenant, &named(name, true)).await.unwrap();
        parents.push(registry.device(&tenant, &name.parse().unwrap()).await.unwrap().unwrap());
    }
    // More than one question, and every name twice.
    let names: Vec<DeviceId> = (0..1_400).map(|n| format!("meter-{}", n % 700).parse().unwrap()).collect();
    let found = registry.children_of(&parents[0], &names, 600).await.unwrap();
    assert_eq!(found.iter().filter(|child| child.is_ok()).count(), 1_200);
    let refused: Vec<_> = found.iter().filter_map(|child| child.as_ref().err()).collect();
    assert_eq!(refused, vec![&NoChild::TooMany { children_max: 600 }; 200]);
    assert_eq!(registry.devices(&tenant, None, 1_000).await.unwrap().len(), 602);

    let known = names.iter().zip(&found).find(|(_, child)| child.is_ok()).unwrap().0.clone();
    let others = ["other".parse().unwrap()];
    assert!(registry.children_of(&parents[0], &[known], 600).await.unwrap()[0].is_ok(), "those it has stay");
    assert!(registry.children_of(&parents[0], &others, 600).await.unwrap()[0].is_err());
    assert!(registry.children_of(&parents[1], &others, 600).await.unwrap()[0].is_ok(), "to each its own");
}

pub(crate) async fn a_page_goes_on_after_the_last_name(lab: &Lab) {
    let registry = lab.open().await;
    let tenant = TenantId::default_tenant();
    registry.add_tenant(&tenant).await.unwrap();
    for name in ["b", "a", "B", "a-1", "a1", "_"] {
        registry.add_device(&tenant, &named(name, false)).await.unwrap();
    }
    let mut names: Vec<String> = Vec::new();
    loop {
        let page = registry.devices(&tenant, names.last().map(String::as_str), 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        names.extend(page.iter().map(|device| device.name.to_string()));
    }
    assert_eq!(names, ["B", "_", "a", "a-1", "a1", "b"], "by their bytes");
}

pub(crate) async fn what_belongs_to_nobody_is_refused(lab: &Lab) {
    let registry = lab.open().await;
    let (nobody, device) = ("nobody".parse().unwrap(), named("pump-1", false));
    assert!(registry.add_device(&nobody, &device).await.unwrap_err().is_refusal());
    assert!(registry.devices(&nobody, None, 10).await.unwrap().is_empty(), "nothing of it is left");
    let token = registry.add_device_token(&nobody, &device.name, false).await;
    assert!(matches!(token, Err(RegistryError::NotFound { .. })));
}
