//! Every resource as people read it. A change of these files is a change of what every proxy of a mesh runs.

use osm_core::ir::ServiceCertificate;
use serde_json::Value;

use crate::{
    cases,
    resources::{Credentials, Resources},
};

#[test]
fn resources_are_as_reviewed() {
    let credentials = Credentials {
        roots: "roots".into(),
        certificate: ServiceCertificate {
            chain: "chain".into(),
            key: "key".into(),
        },
    };
    for sidecar in cases::all() {
        let resources = shorten(serde_json::to_value(Resources::of(&sidecar, &credentials)).unwrap());
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_yaml_snapshot!(sidecar.name, resources);
        });
    }
}

/// Shows the fields of the access log once, not with every filter chain.
fn shorten(mut value: Value) -> Value {
    fn walk(value: &mut Value, shown: &mut bool) {
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    if name == "jsonFormat" && std::mem::replace(shown, true) {
                        *field = "as above".into();
                    }
                    walk(field, shown);
                }
            }
            Value::Array(list) => list.iter_mut().for_each(|item| walk(item, shown)),
            _ => {}
        }
    }
    walk(&mut value, &mut false);
    value
}
