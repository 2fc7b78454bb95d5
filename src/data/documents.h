// The documents of a text data set, one after the other, in constant memory (the largest document
// and some buffers):
//
//     .txt                        one document, the whole file, byte for byte
//     .jsonl, .jsonl.gz, .zst     one a line: the string at `text_column` of a JSON object; lines
//                                 of blanks are none; null is an empty document
//     .parquet                    one a row: the string in column `text_column`; null is empty
//
// Bytes that are not UTF-8 become U+FFFD, lone halves of a surrogate pair in JSON too. The reader
// only cuts a file into records; what turns a record into text costs more and needs no order, so
// that is left to many threads. Read next: prepare.h.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "data/arrow_files.h"

namespace picotron {

// The files that `name` means, in the order of their names: a file, the text files in a folder
// (those in folders within it too), or a pattern as shells have them ("data/*.jsonl.zst").
// UserError where there are none, or they are of several kinds.
std::vector<std::filesystem::path> find_text_files(const std::string& name);

// ".txt", ".jsonl" (compressed or not) or ".parquet"; "" for a file that is none of them.
std::string text_kind(const std::filesystem::path& file);

struct DocumentPlace {
  int64_t file = 0, record = 0;  // lines or rows before it in its file
  bool operator==(const DocumentPlace&) const = default;
};

struct Record {
  DocumentPlace place;
  std::string bytes;  // a line of JSON, or the text
};

class DocumentReader {
 public:
  DocumentReader(std::vector<std::filesystem::path> files, std::string text_column,
                 DocumentPlace begin = {});
  ~DocumentReader();

  // False after the last one. UserError naming the file, as arrow_files.h says.
  bool next(Record& record);
  // Where the next record begins.
  DocumentPlace place() const { return place_; }
  int64_t bytes_read() const;  // of the files

  // The text of a record. Thread-safe. UserError naming file and line where a line is no JSON
  // object or lacks the column.
  std::string text_of(const Record& record) const;

 private:
  bool next_of_file(std::string& bytes);

  std::vector<std::filesystem::path> files_;
  std::string text_column_;
  DocumentPlace place_;
  bool is_open_ = false;
  std::unique_ptr<ByteStream> stream_;
  std::unique_ptr<ParquetColumn> rows_;
  std::string buffer_;  // of the stream, from buffer_[begin_] on not yet taken
  size_t begin_ = 0;
  int64_t bytes_of_files_before_ = 0;
};

}  // namespace picotron
