//! What the chart passes to the binaries is what they take: parsed by the binaries' own command lines.

use clap::Parser;
use osm_runtime::issuer::{Provider, Token};
use serde_json::Value;

use crate::helm::{Rendered, render};

/// A component's arguments, and its environment as the flags it stands for.
fn arguments(rendered: &Rendered, name: &str) -> Vec<String> {
    let container = &rendered.get("Deployment", name)["spec"]["template"]["spec"]["containers"][0];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let flags = container["args"]
        .as_array()
        .expect("args")
        .iter()
        .filter_map(text);
    let environment = container["env"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|variable| {
            let flag = match variable["name"].as_str()? {
                "OSM_DEFAULT_ENVOY_IMAGE" => "--envoy-image",
                "OSM_DEFAULT_INIT_CONTAINER_IMAGE" => "--init-image",
                _ => return None,
            };
            Some(format!("{flag}={}", variable["value"].as_str()?))
        });
    std::iter::once(name.to_owned())
        .chain(flags)
        .chain(environment)
        .collect()
}

/// The provider that both components make of what the chart passes them.
fn provider(sets: &[&str]) -> Provider {
    let rendered = render(sets);
    let controller = osm_controller::args::Args::try_parse_from(arguments(&rendered, "osm-controller"));
    let injector = osm_injector::args::Args::try_parse_from(arguments(&rendered, "osm-injector"));
    let controller = controller
        .expect("the controller's arguments")
        .component
        .setting()
        .expect("a provider")
        .configured;
    let injector = injector
        .expect("the injector's arguments")
        .component
        .setting()
        .expect("a provider")
        .configured;
    // The labels have the component's version in them and nothing of the component.
    assert_eq!(format!("{controller:?}"), format!("{injector:?}"));
    controller
}

#[test]
fn both_components_take_every_provider() {
    assert!(matches!(provider(&[]), Provider::Tresor { namespace, secret, .. }
            if namespace == "osm-system" && secret == "osm-ca-bundle"));
    let vault = provider(&[
        "osm.certificateProvider.kind=vault",
        "osm.vault.host=vault.infra",
        "osm.vault.port=8300",
        "osm.vault.protocol=https",
        "osm.vault.role=mesh",
        "osm.vault.token=hvs.x",
        "osm.vault.caSecret.name=vault-ca",
        "osm.caBundleSecretName=root",
    ]);
    let Provider::Vault {
        options,
        memory: Some(memory),
    } = vault
    else {
        panic!("{vault:?}")
    };
    assert_eq!(options.address.to_string(), "https://vault.infra:8300/");
    assert_eq!((options.role.as_str(), memory.name.as_str()), ("mesh", "root"));
    let authorities = options.authorities.expect("a file of CAs");
    assert_eq!(authorities.to_str(), Some("/etc/osm/vault/ca.crt"));
    assert!(
        matches!(&options.token, Token::Secret { name, key, .. } if name == "osm-vault-token" && key == "token")
    );

    let issuer = provider(&[
        "osm.certificateProvider.kind=cert-manager",
        "osm.certmanager.issuerName=ca",
        "osm.certmanager.issuerKind=ClusterIssuer",
    ]);
    let Provider::CertManager { options, .. } = issuer else {
        panic!("{issuer:?}")
    };
    assert_eq!(
        [options.issuer, options.kind, options.group, options.namespace],
        ["ca", "ClusterIssuer", "cert-manager.io", "osm-system"]
    );
}

/// The CA of Vault is a file in both components' containers, and nothing is mounted without need.
#[test]
fn the_ca_of_vault_is_mounted() {
    let vault = [
        "osm.certificateProvider.kind=vault",
        "osm.vault.host=vault",
        "osm.vault.secret.name=token",
        "osm.vault.secret.key=key",
    ];
    let with = [
        &vault[..],
        &[
            "osm.vault.caSecret.name=vault-ca",
            "osm.vault.caSecret.key=root.pem",
        ],
    ]
    .concat();
    for name in ["osm-controller", "osm-injector"] {
        let rendered = render(&with);
        let pod = &rendered.get("Deployment", name)["spec"]["template"]["spec"];
        assert_eq!(pod["volumes"][0]["secret"]["secretName"], "vault-ca", "{pod}");
        assert_eq!(pod["volumes"][0]["secret"]["items"][0]["key"], "root.pem");
        let mount = &pod["containers"][0]["volumeMounts"][0];
        assert_eq!(
            (&mount["name"], &mount["mountPath"]),
            (&pod["volumes"][0]["name"], &"/etc/osm/vault".into())
        );
        for none in [&[][..], &vault] {
            let pod = render(none);
            let pod = &pod.get("Deployment", name)["spec"]["template"]["spec"];
            assert!(pod["volumes"].is_null() && pod["containers"][0]["volumeMounts"].is_null());
        }
    }
    let rendered = render(&vault);
    assert!(
        rendered.find("Secret", "osm-vault-token").is_none(),
        "the token is in the operator's own Secret"
    );
}
