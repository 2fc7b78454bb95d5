// What Arrow reads for us: files that are compressed, and columns of Parquet files
// (https://parquet.apache.org/docs/file-format). This is the one room that knows Arrow.
//
// A Parquet file is a list of row groups; in a group a column is a list of pages, each encoded
// (plain, by a dictionary, by differences) and compressed. Pages are read one after the other, so
// that memory holds one page of the one column that is asked for, however large the file.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

namespace picotron {

// A file's bytes from its beginning; those of .gz and .zst decompressed.
class ByteStream {
 public:
  virtual ~ByteStream() = default;
  // Fills `out` from its front; 0 at the end. UserError naming the file where it cannot be read or
  // what is compressed is damaged or cut off.
  virtual size_t read(std::span<char> out) = 0;
  virtual int64_t file_bytes() const = 0;  // of the file itself, read so far
};
std::unique_ptr<ByteStream> open_bytes(const std::filesystem::path& file);

// A column of text of a Parquet file, row by row.
class ParquetColumn {
 public:
  virtual ~ParquetColumn() = default;
  // False at the end. A null is an empty text. UserError naming the file where it is damaged.
  virtual bool next(std::string& text) = 0;
  virtual void skip(int64_t rows) = 0;  // of those to come
  virtual int64_t file_bytes() const = 0;
};
// UserError where the file is no Parquet file, or has no such column of strings: it names those
// that there are.
std::unique_ptr<ParquetColumn> open_parquet(const std::filesystem::path& file,
                                            const std::string& column);

}  // namespace picotron
