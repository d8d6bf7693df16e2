// What BuildKit does with a layer, in Go and in one stream, with compress/gzip at its default level.
//
//	deflate                 stdin → stdout
//	deflate DIRECTORY FILE  tar of DIRECTORY → diff_id → gzip → digest → FILE; prints both digests
package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
)

func main() {
	var err error
	if len(os.Args) == 3 {
		err = layer(os.Args[1], os.Args[2])
	} else {
		err = compress(os.Stdin, os.Stdout)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func compress(from io.Reader, to io.Writer) error {
	writer := gzip.NewWriter(to)
	if _, err := io.CopyBuffer(writer, from, make([]byte, 1<<20)); err != nil {
		return err
	}
	return writer.Close()
}

func layer(directory, name string) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	diffID, digest := sha256.New(), sha256.New()
	compressor := gzip.NewWriter(io.MultiWriter(file, digest))
	// The tar is made beside the compressor, as containerd's diff service does.
	reader, writer := io.Pipe()
	go func() { writer.CloseWithError(pack(directory, writer)) }()
	if _, err := io.CopyBuffer(io.MultiWriter(compressor, diffID), reader, make([]byte, 1<<20)); err != nil {
		return err
	}
	if err := compressor.Close(); err != nil {
		return err
	}
	fmt.Printf("%x %x\n", diffID.Sum(nil), digest.Sum(nil))
	return file.Close()
}

func pack(directory string, to io.Writer) error {
	archive := tar.NewWriter(to)
	buffer := make([]byte, 32<<10)
	err := filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == directory {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		header, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		if header.Name, err = filepath.Rel(directory, path); err != nil {
			return err
		}
		if err := archive.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		_, err = io.CopyBuffer(archive, file, buffer)
		return err
	})
	if err != nil {
		return err
	}
	return archive.Close()
}
