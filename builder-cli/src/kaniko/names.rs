//! Names of images as Kaniko writes them, and under which name others know a registry.

use builder_core::oci::Reference;

use super::refusal::Refusal;

/// A `--destination`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// As given.
    pub typed: String,
    /// What is pushed to.
    pub reference: Reference,
    /// What is written out, as typed except for `--report-as`.
    pub shown: String,
}

/// `--report-as`: what a name begins with → what it is replaced by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReportAs(Vec<(String, String)>);

impl ReportAs {
    /// Reads `HOST[/PREFIX]=OTHER[/PREFIX]`, several of them.
    ///
    /// # Errors
    /// If one has no `=`, or nothing on one side of it.
    pub fn parse(texts: &[String]) -> Result<Self, Refusal> {
        let rules = texts.iter().flat_map(|text| text.split(';')).filter(|text| !text.is_empty()).map(|text| {
            let sides = text.split_once('=').map(|(from, to)| (from.trim_end_matches('/'), to.trim_end_matches('/')));
            match sides {
                Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((from.to_owned(), to.to_owned())),
                _ => Err(Refusal::value("--report-as", text, "it is HOST[/PREFIX]=OTHER[/PREFIX]")),
            }
        });
        Ok(Self(rules.collect::<Result<_, _>>()?))
    }

    /// `name` as others know it: the longest rule counts that matches whole components.
    pub fn apply(&self, name: &str) -> String {
        let matching = self.0.iter().filter_map(|(from, to)| {
            let rest = name.strip_prefix(from.as_str())?;
            (rest.is_empty() || rest.starts_with('/')).then_some((from.len(), to, rest))
        });
        match matching.max_by_key(|(length, ..)| *length) {
            Some((_, to, rest)) => format!("{to}{rest}"),
            None => name.to_owned(),
        }
    }
}

impl Destination {
    /// Reads one `--destination`.
    ///
    /// # Errors
    /// If it is no name with a tag.
    pub fn parse(text: &str, report_as: &ReportAs) -> Result<Self, Refusal> {
        let reference: Reference = text.parse().map_err(Refusal::Destination)?;
        if reference.digest().is_some() {
            return Err(Refusal::DestinationDigest(text.to_owned()));
        }
        Ok(Self { typed: text.to_owned(), shown: report_as.apply(text), reference })
    }

    /// `registry/repository` as Kaniko writes it.
    pub fn repository(&self, report_as: &ReportAs) -> String {
        report_as.apply(&repository(&self.reference))
    }

    /// As given, with `:latest` if there was no tag, as it stands in a `docker save` tar.
    pub fn tagged(&self) -> String {
        let last = self.shown.rsplit('/').next().unwrap_or(&self.shown);
        if last.contains(':') { self.shown.clone() } else { format!("{}:latest", self.shown) }
    }
}

/// `registry/repository`, where Docker Hub is `index.docker.io`.
pub fn repository(reference: &Reference) -> String {
    let registry = match reference.registry() {
        "docker.io" => "index.docker.io",
        other => other,
    };
    format!("{registry}/{}", reference.repository())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_as_kaniko_does() {
        for (typed, name, tagged) in [
            ("x", "index.docker.io/library/x", "x:latest"),
            ("a/x:1", "index.docker.io/a/x", "a/x:1"),
            ("docker.io/a/x:1", "index.docker.io/a/x", "docker.io/a/x:1"),
            ("localhost:5000/x", "localhost:5000/x", "localhost:5000/x:latest"),
        ] {
            let destination = Destination::parse(typed, &ReportAs::default()).expect("a destination");
            assert_eq!(
                (destination.repository(&ReportAs::default()), destination.tagged()),
                (name.into(), tagged.into())
            );
        }
        for bad in ["", "A", "x@sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"] {
            assert!(Destination::parse(bad, &ReportAs::default()).is_err(), "{bad}");
        }
    }

    #[test]
    fn reports_replace_whole_components() {
        let rules = ["push:5000=localhost:30500;push:5000/team=pull.example/t".to_owned()];
        let rules = ReportAs::parse(&rules).expect("rules");
        for (name, expected) in [
            ("push:5000/x", "localhost:30500/x"),
            ("push:5000/team/x", "pull.example/t/x"),
            ("push:5000/teams/x", "localhost:30500/teams/x"),
            ("push:50001/x", "push:50001/x"),
        ] {
            assert_eq!(rules.apply(name), expected);
        }
        for bad in ["a", "=b", "a="] {
            assert!(ReportAs::parse(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
