//! Which ids a user namespace can have: /etc/subuid, /etc/subgid, and what `uid_map` files say. user_namespaces(7), subuid(5).

use std::fs;
use std::io;
use std::path::Path;

/// A range of ids inside a user namespace and where it begins outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The ids of one kind (users or groups) that exist.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdRanges(pub Vec<IdRange>);

impl IdRanges {
    /// Reads a `uid_map` or `gid_map`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string(path)?))
    }

    fn parse(map: &str) -> Self {
        let range = |line: &str| {
            let mut numbers = line.split_whitespace().map(str::parse);
            let mut next = || numbers.next()?.ok();
            Some(IdRange { inside: next()?, outside: next()?, count: next()? })
        };
        Self(map.lines().filter_map(range).collect())
    }

    /// Own id as 0, then subordinate ids from 1 on.
    pub fn subordinate(own: u32, ranges: &[(u32, u32)]) -> Self {
        let mut map = vec![IdRange { inside: 0, outside: own, count: 1 }];
        let mut inside = 1;
        for &(outside, count) in ranges {
            map.push(IdRange { inside, outside, count });
            inside += count;
        }
        Self(map)
    }

    /// Own id as 0 and nothing else.
    pub fn single(own: u32) -> Self {
        Self::subordinate(own, &[])
    }

    /// Every id that the kernel can name.
    pub fn all() -> Self {
        Self(vec![IdRange { inside: 0, outside: 0, count: u32::MAX }])
    }

    /// The same ids for a namespace below this one.
    pub fn identity(&self) -> Self {
        Self(self.0.iter().map(|range| IdRange { outside: range.inside, ..*range }).collect())
    }

    /// Whether `id` exists inside.
    pub fn contains(&self, id: u32) -> bool {
        self.0.iter().any(|range| id >= range.inside && id - range.inside < range.count)
    }

    /// How many ids exist.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|range| u64::from(range.count)).sum()
    }

    /// As the kernel reads it.
    pub fn to_map(&self) -> String {
        let lines = self.0.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count));
        lines.collect()
    }

    /// As arguments of newuidmap(1).
    pub fn to_arguments(&self) -> Vec<String> {
        self.0.iter().flat_map(|range| [range.inside, range.outside, range.count]).map(|id| id.to_string()).collect()
    }
}

/// Ranges (first, count) that a subuid(5) file grants to the user with this id or name; the kernel takes at most 340 lines,
/// one of which is the own id.
pub fn granted(file: &str, uid: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    let line = |line: &str| {
        let mut fields = line.trim().split(':');
        let who = fields.next()?;
        if who.parse() != Ok(uid) && Some(who) != name {
            return None;
        }
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let fits = count > 0 && u32::checked_add(first, count).is_some();
        fits.then_some((first, count))
    };
    let mut inside = 1_u32;
    let fitting = file.lines().filter_map(line).take_while(move |&(_, count)| {
        let sum = inside.checked_add(count);
        inside = sum.unwrap_or(inside);
        sum.is_some()
    });
    fitting.take(339).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(file: &str, expected: &[(u32, u32)]) {
        assert_eq!(granted(file, 1000, Some("me")), expected, "{file:?}");
    }

    #[test]
    fn subordinate_ranges() {
        check("", &[]);
        check("root:1:2\nme:100000:65536\n", &[(100_000, 65_536)]);
        check("1000:100000:65536\nme:300000:10\nyou:1:1\n", &[(100_000, 65_536), (300_000, 10)]);
        check("me:x:1\nme:1\nme:1:0\nme:4294967295:2\n # me:1:1\nme:5:6:\n", &[(5, 6)]);
        check("me:0:4294967295\n", &[]);
        assert_eq!(granted("me:1:2\n", 1000, None), []);
    }

    #[test]
    fn maps() {
        let map = IdRanges::subordinate(1000, &[(100_000, 5), (300_000, 10)]);
        assert_eq!(map.to_map(), "0 1000 1\n1 100000 5\n6 300000 10\n");
        assert_eq!(map.to_arguments().join(" "), "0 1000 1 1 100000 5 6 300000 10");
        assert_eq!(IdRanges::parse(&map.to_map()), map);
        assert_eq!(IdRanges::parse("         0          0 4294967295\n").count(), u64::from(u32::MAX));
        assert_eq!(map.identity().to_map(), "0 0 1\n1 1 5\n6 6 10\n");
        for (id, exists) in [(0, true), (1, true), (15, true), (16, false), (u32::MAX, false)] {
            assert_eq!(map.contains(id), exists, "{id}");
        }
        assert!(!IdRanges::single(5).contains(1));
    }
}
