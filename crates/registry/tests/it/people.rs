use dunlin_model::TenantId;
use dunlin_registry::{RegistryError, Scope, User};

use crate::Lab;

pub(crate) async fn a_persons_token_says_tenant_and_scope(lab: &Lab) {
    let registry = lab.open().await;
    let tenant = TenantId::default_tenant();
    registry.add_tenant(&tenant).await.unwrap();
    let token = registry.add_user_token(&tenant, Scope::Platform).await.unwrap();
    let user = registry.user_by_token(token.reveal()).await.unwrap();
    assert_eq!(user, Some(User { tenant, scope: Scope::Platform }));
    assert_eq!(registry.user_by_token("dnu_0").await.unwrap(), None);
    assert!(!format!("{token:?}").contains(token.reveal()), "a token does not reach a log");
}

pub(crate) async fn tenants_are_in_the_order_of_their_bytes(lab: &Lab) {
    let registry = lab.open().await;
    for name in ["b", "a", "B", "a-1", "a1"] {
        registry.add_tenant(&name.parse().unwrap()).await.unwrap();
    }
    let names: Vec<String> = registry.tenants().await.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["B", "a", "a-1", "a1", "b"]);
    assert!(registry.has_tenant(&"B".parse().unwrap()).await.unwrap());
    assert!(!registry.has_tenant(&"A".parse().unwrap()).await.unwrap());
    assert!(matches!(registry.add_tenant(&"B".parse().unwrap()).await, Err(RegistryError::Exists { .. })));
}

pub(crate) async fn what_works_says_so(lab: &Lab) {
    let registry = lab.open().await;
    registry.check().await.unwrap();
    registry.close().await;
    assert!(registry.check().await.unwrap_err().is_unavailable());
}
