// Compresses stdin as BuildKit compresses a layer: Go's compress/gzip at its default level, in one stream.
package main

import (
	"compress/gzip"
	"io"
	"log"
	"os"
)

func main() {
	writer := gzip.NewWriter(os.Stdout)
	if _, err := io.CopyBuffer(writer, os.Stdin, make([]byte, 1<<20)); err != nil {
		log.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		log.Fatal(err)
	}
}
