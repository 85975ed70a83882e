//! A pod and the RFC 6902 operations that were done to it.
//!
//! Operations are made one by one rather than by comparing two pods: a comparison of arrays rewrites every element
//! after an inserted one, and would drop fields of a Kubernetes newer than the types compiled in. Invariant: the
//! operations, applied to the original, give the edited pod.

use json_patch::{
    AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation, jsonptr::PointerBuf,
};
use serde_json::{Value, json};

/// A pod being edited.
#[derive(Debug)]
pub(super) struct Editor {
    original: Value,
    pod: Value,
    operations: Vec<PatchOperation>,
}

impl Editor {
    pub(super) fn new(pod: Value) -> Self {
        Self {
            original: pod.clone(),
            pod,
            operations: Vec::new(),
        }
    }

    /// The pod as it is now.
    pub(super) fn pod(&self) -> &Value {
        &self.pod
    }

    /// The edited pod and the patch, which is empty if nothing came of the edits.
    pub(super) fn finish(self) -> (Value, Patch) {
        let operations = if self.pod == self.original {
            Vec::new()
        } else {
            self.operations
        };
        (self.pod, Patch(operations))
    }

    pub(super) fn set_label(&mut self, key: &str, value: &str) {
        self.set_metadata("labels", key, value);
    }

    pub(super) fn set_annotation(&mut self, key: &str, value: &str) {
        self.set_metadata("annotations", key, value);
    }

    pub(super) fn remove_label(&mut self, key: &str) {
        self.remove(&["metadata", "labels", key]);
    }

    /// Adds an element to the end of a list of the pod's spec.
    pub(super) fn append(&mut self, list: &str, element: Value) {
        if self.has_list(list) {
            self.add(&["spec", list, "-"], element);
        } else {
            self.add(&["spec", list], json!([element]));
        }
    }

    /// Adds an element to the front of a list of the pod's spec.
    pub(super) fn insert_first(&mut self, list: &str, element: Value) {
        if self.has_list(list) {
            self.insert(list, 0, element);
        } else {
            self.add(&["spec", list], json!([element]));
        }
    }

    /// Inserts an element into a list of the pod's spec, which is at least `index` long.
    pub(super) fn insert(&mut self, list: &str, index: usize, element: Value) {
        self.add(&["spec", list, &index.to_string()], element);
    }

    /// Adds or overwrites the value at `path`, whose parent exists.
    pub(super) fn add(&mut self, path: &[&str], value: Value) {
        let path = pointer(path);
        self.apply(PatchOperation::Add(AddOperation { path, value }));
    }

    /// Overwrites the value at `path`, if there is one.
    pub(super) fn replace(&mut self, path: &[&str], value: Value) {
        if self.get(path).is_some() {
            let path = pointer(path);
            self.apply(PatchOperation::Replace(ReplaceOperation { path, value }));
        }
    }

    /// Removes the value at `path`, if there is one.
    pub(super) fn remove(&mut self, path: &[&str]) {
        if self.get(path).is_some() {
            let path = pointer(path);
            self.apply(PatchOperation::Remove(RemoveOperation { path }));
        }
    }

    /// The value at `path`.
    pub(super) fn get(&self, path: &[&str]) -> Option<&Value> {
        self.pod.pointer(pointer(path).as_str())
    }

    fn set_metadata(&mut self, map: &str, key: &str, value: &str) {
        if !self.pod["metadata"].is_object() {
            self.add(&["metadata"], json!({}));
        }
        if !self.pod["metadata"][map].is_object() {
            self.add(&["metadata", map], json!({}));
        }
        self.add(&["metadata", map, key], json!(value));
    }

    fn has_list(&self, list: &str) -> bool {
        self.pod["spec"][list].is_array()
    }

    fn apply(&mut self, operation: PatchOperation) {
        let operation = [operation];
        // Cannot fail for paths whose parents exist, which all callers see to; if it did, the patch would lack the
        // operation just as the pod does.
        if json_patch::patch_unsafe(&mut self.pod, &operation).is_ok() {
            self.operations.extend(operation);
        }
    }
}

fn pointer(path: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(path.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patch_gives_the_edited_pod() {
        let original = json!({ "spec": { "containers": [{ "name": "a" }] } });
        let mut editor = Editor::new(original.clone());
        editor.set_label("a/b~c", "d");
        editor.insert_first("initContainers", json!({ "name": "two" }));
        editor.insert_first("initContainers", json!({ "name": "one" }));
        editor.append("containers", json!({ "name": "b" }));
        editor.remove(&["spec", "containers", "0"]);
        editor.remove(&["no", "such", "place"]);
        let (pod, patch) = editor.finish();
        let expected = json!({
            "metadata": { "labels": { "a/b~c": "d" } },
            "spec": { "initContainers": [{ "name": "one" }, { "name": "two" }], "containers": [{ "name": "b" }] },
        });
        assert_eq!(pod, expected);
        let mut patched = original;
        json_patch::patch(&mut patched, &patch).expect("applies");
        assert_eq!(patched, expected);
    }
}
